#include "gsa/ops/indexer/index_select_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <vector>

#include "gsa/ops/indexer/index_select_stored_plan.h"
#include "gsa/testing/random.h"

namespace gsa::fused_select {
namespace {

TEST(IndexSelectPlan, ListsHoldABudgetTwiceAndWhatLanesMayStage) {
  for (const int64_t keys : {1, 100, 4096, 131072, 1 << 20}) {
    for (const int k : {1, 31, 256, 2048, 4096}) {
      const int64_t row = row_capacity(k, keys);
      const int64_t need = std::min<int64_t>(k, keys);
      // A list is trimmed when it has no room for all that the row's lanes may have staged; then it has.
      EXPECT_GE(row - int64_t{kLanesPerRow} * kStaged, 2 * need);
      EXPECT_EQ(row * 8 % 16, 0);
      // Tiles without a sample have lists for all of their keys.
      for (const int64_t first : {0, 1500, 2047, 2048, 4000})
        if (sample_blocks(first, static_cast<int>(row)) == 0) {
          EXPECT_LE(std::min(first + kTileQueries, keys), full_list(static_cast<int>(row)));
        }
    }
  }
}

TEST(IndexSelectPlan, SampleLiesBeforeTheTile) {
  for (const int64_t first : {0, 4144, 4145, 5000, 65536, 131000, 1 << 20}) {
    const int blocks = sample_blocks(first, 4352);
    EXPECT_LE(int64_t{blocks} * kBlockKeys * kSampleStride, first);
    EXPECT_EQ(blocks == 0, first + kTileQueries <= full_list(4352));
  }
}

TEST(IndexSelectPlan, SamplePhasesVisitEveryResidue) {
  std::set<int> phases;
  for (int block = 0; block < kSampleStride; ++block) {
    EXPECT_GE(sample_phase(block), 0);
    EXPECT_LT(sample_phase(block), kSampleStride);
    phases.insert(sample_phase(block));
  }
  EXPECT_EQ(phases.size(), static_cast<size_t>(kSampleStride));
}

// The gate from a sample must leave at least `need` survivors nearly always, and not far more than it has to.
TEST(IndexSelectPlan, SampleRankKeepsEnoughAndNotTooMuch) {
  auto generator = testing::case_generator(0);
  std::uniform_real_distribution<float> uniform;
  const int valid = 16384, samples = valid / kSampleStride, trials = 300;
  for (const int need : {256, 1024, 8192}) {
    const int full = full_list(static_cast<int>(row_capacity(need, valid)));
    int short_rows = 0, full_lists = 0;
    double survivors = 0;
    for (int trial = 0; trial < trials; ++trial) {
      std::vector<float> sample(samples);
      for (float& s : sample) s = uniform(generator);
      const int rank = sample_rank(samples, need, valid);
      ASSERT_LE(rank, samples);
      std::nth_element(sample.begin(), sample.begin() + rank - 1, sample.end(), std::greater<>());
      const float gate = sample[rank - 1];
      int above = 0;
      for (int i = 0; i < valid; ++i) above += uniform(generator) > gate;
      short_rows += above < need;
      full_lists += above > full;
      survivors += above;
    }
    EXPECT_LE(short_rows, 1) << "need " << need;
    EXPECT_LE(full_lists, 3) << "need " << need;
    EXPECT_LT(survivors / trials, 4.0 * need) << "need " << need;
  }
  EXPECT_GT(sample_rank(64, 64, 64), 64);  // everything is wanted: no gate
}

TEST(IndexSelectPlan, TilesSpreadOverTheChipAndHaveLists) {
  IndexSelectParams params;
  params.heads = 4;
  params.dim = 64;
  params.k_max = 2048;
  struct Expected {
    int64_t batch, queries, tiles;
    int blocks;
    int64_t at_once;
  };
  for (const auto& [batch, queries, tiles, blocks, at_once] :
       {Expected{1, 1, 1, 1, 1}, Expected{1, 33, 2, 2, 2}, Expected{3, 33, 6, 6, 6},
        Expected{1, 8192, 256, 132, 256}, Expected{1, 20000, 625, 132, 396},
        Expected{2, 131072, 8192, 132, 396}}) {
    params.batch = batch;
    params.queries = params.keys = queries;
    EXPECT_EQ(work_count(params), tiles);
    EXPECT_EQ(block_count(params, 132), blocks);
    EXPECT_EQ(tiles_at_once(params, 132), at_once);
    EXPECT_EQ(workspace_bytes(params, 132),
              kHeaderBytes + static_cast<size_t>(32 * at_once * row_capacity(2048, queries) * 8));
  }
}

IndexSelectParams shared_problem(int64_t batch, int64_t queries, int64_t keys, int k, int query_tile) {
  IndexSelectParams p;
  p.batch = batch, p.queries = queries, p.keys = keys;
  p.heads = 4, p.dim = 64;
  p.k_base = p.k_min = p.k_max = k;
  p.query_tile = query_tile;
  p.keep_first = 4, p.keep_recent = 16;
  p.capacity = shared_keys(p.tile_factor, k) + query_tile;
  return p;
}

TEST(IndexSelectPlan, SharedRowsRoundHalfToEvenAndNeedWhatTheyMayTake) {
  EXPECT_EQ(shared_keys(1.5, 3), 4);    // 4.5
  EXPECT_EQ(shared_keys(1.5, 5), 8);    // 7.5
  EXPECT_EQ(shared_keys(1.3, 15), 20);  // 19.5 in fp64, less in fp32
  const IndexSelectParams p = shared_problem(1, 1000, 1000, 100, 64);
  EXPECT_EQ(shared_need(p, 0), 0);
  EXPECT_EQ(shared_need(p, 15), 0);     // all kept
  EXPECT_EQ(shared_need(p, 64), 44);    // all candidates
  EXPECT_EQ(shared_need(p, 960), 130);  // 150 less the kept ones
  IndexSelectParams narrow = p;
  narrow.tile_factor = 1.1;
  EXPECT_EQ(shared_need(narrow, 960), 100);  // the k-th best of them is the threshold
  EXPECT_EQ(shared_first_need(p, 64), 44);
  EXPECT_EQ(shared_first_need(p, 960), 100);
  EXPECT_EQ(shared_first_need(p, 182), 130);  // nearly all of 162 candidates
  EXPECT_EQ(shared_first_need(p, 183), 100);
  for (const double factor : {1.0, 1.1, 1.5, 4.0})
    for (const int start : {0, 15, 64, 100, 110, 960, 100000}) {
      IndexSelectParams q = p;
      q.tile_factor = factor, q.keys = 200000;
      EXPECT_LE(shared_first_need(q, start), shared_need(q, start));
      // Trimming to what is needed leaves room for what lanes stage.
      EXPECT_GE(list_capacity(q) - shared_need(q, start), 2 * kLanesPerRow * kStaged);
    }
}

// Every query in exactly one chunk, with its own keys and outputs, and tiles never split.
TEST(IndexSelectPlan, ChunksCoverTheQueries) {
  for (const int64_t queries : {1, 64, 200, 5000})
    for (const int64_t batch : {1, 7})
      for (const int tile : {1, 2, 50, 64, 256})
        for (const size_t limit : {size_t{1}, size_t{1} << 22, size_t{1} << 26, size_t{1} << 34}) {
          IndexSelectParams p = shared_problem(batch, queries, queries + 100, 300, tile);
          std::vector<char> keys(1), query(1);
          std::vector<float> numbers(batch * queries * 4);
          const int64_t rows = (queries + tile - 1) / tile;
          std::vector<int32_t> counts(batch * rows);
          p.index_query = query.data(), p.index_key = keys.data();
          p.head_weight = p.statistic = numbers.data();
          p.counts = p.indices = counts.data();
          p.capacity = 0;
          const ListPlan plan = plan_lists(p, 132, SelectLimits{limit, 1 << 14});
          const size_t bytes = list_workspace_bytes(p, plan);
          std::vector<int> seen(batch * queries);
          for (int64_t i = 0; i < plan.chunks.count; ++i) {
            const IndexSelectParams c = chunk_of(p, plan.chunks, i);
            ASSERT_GE(c.batch, 1);
            ASSERT_GE(c.queries, 1);
            ASSERT_TRUE(c.batch == 1 || c.queries == queries);
            const int64_t token = c.statistic - p.statistic, first = token % queries;
            EXPECT_EQ(first % tile, 0);
            // Only the first chunk of a sequence, with the fewest keys, may be small.
            if (i % plan.chunks.of_sequence > 0) {
              EXPECT_GT(c.queries, plan.chunks.queries - tile);
            }
            EXPECT_EQ(c.keys - c.queries, first + 100);  // the first query's position
            EXPECT_EQ(c.counts - p.counts, token / queries * rows + first / tile);
            EXPECT_EQ(c.head_weight - p.head_weight, 4 * token);
            EXPECT_EQ(static_cast<const char*>(c.index_query) - query.data(), token * 4 * 64 * 2);
            EXPECT_EQ(static_cast<const char*>(c.index_key) - keys.data(), token / queries * p.keys * 64 * 2);
            for (int64_t t = 0; t < c.batch * c.queries; ++t) ++seen[token + t];
            EXPECT_LE(list_space(c, plan.merged).bytes, bytes);
          }
          EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
        }
}

TEST(IndexSelectPlan, ScoresOfFewAreStoredAndListsKeptWhereAFewChunksHoldThem) {
  const SelectLimits limits;
  using enum SelectLeaves;
  for (const int64_t length : {5000, 15000, 15001, 32768, 32769, 40000, 40001, 131072}) {
    IndexSelectParams p = shared_problem(1, length, length, 2048, 1);
    EXPECT_EQ(select_leaves(p, limits), length <= 32768 ? kScores : length <= 40000 ? kLists : kRows);
    p.activation = IndexActivation::kRelu;
    EXPECT_EQ(select_leaves(p, limits), length <= 15000 ? kScores : length <= 40000 ? kLists : kRows);
    const ListPlan plan = plan_lists(p, 132);
    EXPECT_LE(plan.chunks.count, length <= 16384 ? 1 : length <= 40000 ? 4 : 11);
    EXPECT_EQ(plan.merged, 0);
    p.budget = SelectBudget::kEntropy;  // reads more than stored rows are read for
    EXPECT_EQ(select_leaves(p, limits), length <= 40000 ? kLists : kRows);
  }
  EXPECT_EQ(select_leaves(shared_problem(2, 1024, 131072, 2048, 1), limits), kScores);
  EXPECT_EQ(select_leaves(shared_problem(2, 1025, 131072, 2048, 1), limits), kRows);
  EXPECT_EQ(select_leaves(shared_problem(1, 64, (1 << 20) + 1, 2048, 1), limits), kRows);
  EXPECT_EQ(select_leaves(shared_problem(1, 20000, 20000, 2048, 64), limits), kScores);
  EXPECT_EQ(select_leaves(shared_problem(1, 20001, 20001, 2048, 64), limits), kLists);
  EXPECT_EQ(select_leaves(shared_problem(1, 1536, 131072, 2048, 64), limits), kScores);
  EXPECT_EQ(select_leaves(shared_problem(1, 1537, 131072, 2048, 64), limits), kLists);
}

TEST(IndexSelectPlan, ThreadsOfARowByHowManyRowsAndKeysThereAre) {
  EXPECT_EQ(row_threads(shared_problem(1, 8192, 8192, 2048, 1), 132), 64);
  EXPECT_EQ(row_threads(shared_problem(1, 24576, 24576, 2048, 1), 132), 64);
  EXPECT_EQ(row_threads(shared_problem(1, 32768, 32768, 2048, 1), 132), 128);
  EXPECT_EQ(row_threads(shared_problem(1, 12288, 12288, 2048, 64), 132), 128);
  EXPECT_EQ(row_threads(shared_problem(1, 2048, 2048, 2048, 1), 132), 64);
  EXPECT_EQ(row_threads(shared_problem(1, 1024, 131072, 2048, 1), 132), 256);
  EXPECT_EQ(row_threads(shared_problem(1, 64, 131072, 2048, 1), 132), 512);
  EXPECT_EQ(row_threads(shared_problem(1, 1024, 1 << 20, 2048, 1), 132), 512);
  EXPECT_EQ(row_threads(shared_problem(1, 64, 1000, 2048, 1), 132), 64);
}

TEST(IndexSelectPlan, StoredScoresHaveRoomForEveryPair) {
  for (const int64_t batch : {1, 3})
    for (const int64_t queries : {1, 31, 32, 33, 500, 2048})
      for (const int64_t before : {0, 1, 20, 63, 64, 5000}) {
        IndexSelectParams p = shared_problem(batch, queries, queries + before, 64, 1);
        const StoredScores stored = stored_scores(p);
        int64_t entry = 0, number = 0;
        for (int64_t b = 0; b < batch; ++b)
          for (int64_t tile = 0; tile < stored.tiles; ++tile) {
            EXPECT_EQ(stored.first_entry(b, tile), entry);
            entry += kTileQueries * stored.pitch(tile);
            EXPECT_GE(stored.pitch(tile), std::min(p.keys, before + (tile + 1) * kTileQueries));
            EXPECT_LT(stored.pitch(tile), before + (tile + 1) * kTileQueries + kBlockKeys);
            for (int64_t done = 0; done < stored.work(tile); ++done) {
              const TileWork found = find_work(stored, number++);
              EXPECT_EQ(found.sequence, b);
              EXPECT_EQ(found.tile, tile);
              EXPECT_EQ(found.done, done);
            }
          }
        EXPECT_EQ(stored.all_work(), number);
        EXPECT_TRUE(stores_codes(p));
        EXPECT_EQ(stored_space(p).bytes, kHeaderBytes + (entry + kBlockKeys) * sizeof(uint16_t));
        p.activation = IndexActivation::kRelu;
        EXPECT_EQ(stored_space(p).bytes, kHeaderBytes + (entry + kBlockKeys) * sizeof(float));
      }
  EXPECT_FALSE(stores_codes(shared_problem(1, 100, 100, 64, 2)));
  // The largest numbers that halves() meets.
  const StoredScores largest = stored_scores(shared_problem(1, kMostStored, kMostStored, 64, 1));
  EXPECT_EQ(largest.blocks_before(largest.tiles), int64_t{16384} * 16385);
}

TEST(IndexSelectPlan, SharesOfScoresCoverEveryBlockOnce) {
  for (const int64_t queries : {1, 33, 700})
    for (const int64_t before : {0, 1000})
      for (const int shares : {1, 7, 396}) {
        const StoredScores stored = stored_scores(shared_problem(2, queries, queries + before, 64, 1));
        int64_t sequence = 0, tile = 0, block = 0;  // what comes next
        for (int i = 0; i < shares; ++i) {
          const int64_t first = stored.all_work() * i / shares, end = stored.all_work() * (i + 1) / shares;
          int64_t blocks = 0;
          for_each_run(stored, first, end - first, [&](const BlockRun& run) {
            EXPECT_EQ(run.sequence, sequence);
            EXPECT_EQ(run.tile, tile);
            EXPECT_EQ(run.first, block);
            EXPECT_GT(run.count, 0);
            blocks += run.count;
            block += run.count;
            if (block < stored.blocks(tile)) return;
            block = 0;
            if (++tile < stored.tiles) return;
            tile = 0;
            ++sequence;
          });
          EXPECT_LE(blocks, end - first);
        }
        EXPECT_EQ(sequence, 2);
      }
}

TEST(IndexSelectPlan, StoredScoresStayWithinTheirLimit) {
  for (const size_t limit : {size_t{1} << 20, size_t{64} << 20, SelectLimits{}.workspace})
    for (const int64_t queries : {1, 100, 4001, 16384})
      for (const int64_t keys : {16384, 100003})
        for (const int query_tile : {1, 64, 200}) {
          SelectLimits limits;
          limits.workspace = limit;
          const IndexSelectParams p = shared_problem(3, queries, keys, 64, query_tile);
          const Chunks chunks = plan_scores(p, limits);
          size_t largest = 0;
          for (int64_t i = 0; i < chunks.count; ++i) {
            const IndexSelectParams chunk = chunk_of(p, chunks, i);
            if (i % chunks.of_sequence < chunks.of_sequence - 1) {
              EXPECT_EQ(chunk.queries % query_tile, 0);
            }
            largest = std::max(largest, stored_space(chunk).bytes);
          }
          EXPECT_LE(largest, stored_workspace_bytes(p, chunks));
          if (chunks.queries > query_tile) {
            EXPECT_LE(largest, limit + limit / 50);
          }
        }
  EXPECT_EQ(plan_scores(shared_problem(1, 16384, 16384, 2048, 1), {}).count, 1);
}

TEST(IndexSelectPlan, SharedWorkspaceStaysWithinItsLimitAndFillsTheChip) {
  const SelectLimits limits;
  for (const int k : {256, 1024, 2048}) {
    const IndexSelectParams p = shared_problem(1, 131072, 131072, k, 64);
    const ListPlan plan = plan_lists(p, 132);
    EXPECT_LE(list_workspace_bytes(p, plan), limits.workspace + (size_t{8} << 20));
    EXPECT_GE(plan.chunks.queries, 132 * 96 - 64);
  }
  const IndexSelectParams small = shared_problem(2, 512, 512, 256, 64);
  EXPECT_EQ(plan_lists(small, 132).chunks.count, 1);
  EXPECT_LE(plan_lists(small, 132).window, 2 * kMergeStep);
}

}  // namespace
}  // namespace gsa::fused_select
