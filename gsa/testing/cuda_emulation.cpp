#include "gsa/testing/cuda_emulation.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace gsa {

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedBytes = 227 << 10;

void fiber_main();

// ---- switching stacks. ucontext costs two system calls a switch, and a test makes millions of them.

#ifdef __x86_64__
struct Context {
  void* stack_pointer = nullptr;

  void prepare(char* stack) {
    auto* top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;  // so that fiber_main starts with the stack as after a call
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
};

__attribute__((naked, noinline)) void switch_stacks(void** save, void* load) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}
void switch_context(Context& from, Context& to) {
  switch_stacks(&from.stack_pointer, to.stack_pointer);
}
#else
struct Context {
  ucontext_t context;

  void prepare(char* stack) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, &fiber_main, 0);
  }
};
void switch_context(Context& from, Context& to) {
  swapcontext(&from.context, &to.context);
}
#endif

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  const uint32_t* word = nullptr;  // waits while (*word & mask) == value
  uint32_t mask = 0, value = 0;

  bool ready() const { return !done && (word == nullptr || (*word & mask) != value); }
};

struct Warp {
  uint64_t brought[2][32];
  uint32_t generation = 0;
  int arrived = 0;
  char collective = 0;
};

struct Barrier {
  int arrived = 0;
  uint32_t generation = 0;
};

struct alignas(1024) SharedMemory {
  uint8_t bytes[kSharedBytes];
};

struct Block {
  explicit Block(int threads) : fibers(threads), warps(threads / 32), shared(new SharedMemory) {
    for (Fiber& fiber : fibers) fiber.stack.reset(new char[kStackBytes]);
  }

  void start(int index) {
    number = {static_cast<unsigned>(index), 0, 0};
    // Nothing is zero by luck.
    std::fill(std::begin(shared->bytes), std::end(shared->bytes), uint8_t{0xcd});
    for (Barrier& barrier : barriers) barrier = {};
    for (Warp& warp : warps) warp = {};
    for (Fiber& fiber : fibers) {
      fiber.done = false;
      fiber.word = nullptr;
      fiber.context.prepare(fiber.stack.get());
    }
  }

  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barriers[16];
  std::unique_ptr<SharedMemory> shared;
  std::vector<std::function<void()>> deferred;
  dim3 number;
  int current = 0;
  bool backwards = true;
};

// What runs now.
Block* block = nullptr;
const std::function<void()>* running_kernel = nullptr;
size_t dynamic_shared_bytes = 0;
Context scheduler;
std::string failure;
uint32_t polls = 0;  // times that those who poll were woken
bool polled = false;
constexpr uint32_t kMaxPolls = 10'000;

void leave() {
  switch_context(block->fibers[block->current].context, scheduler);
}

void fiber_main() {
  (*running_kernel)();
  block->fibers[block->current].done = true;
  leave();
}

/// One turn for every fiber of the block that can go on. Returns whether there was any. Every other round
/// goes backwards, so that what relies on the order of threads has a chance to show.
bool run_round(Block& mine) {
  block = &mine;
  blockIdx = mine.number;
  bool ran = false;
  block->backwards = !block->backwards;
  const size_t last = block->fibers.size() - 1;
  for (size_t turn = 0; turn <= last && failure.empty(); ++turn) {
    const size_t i = block->backwards ? last - turn : turn;
    Fiber& fiber = block->fibers[i];
    if (!fiber.ready()) continue;
    block->current = static_cast<int>(i);
    threadIdx.x = static_cast<unsigned>(i);
    switch_context(scheduler, fiber.context);
    ran = true;
  }
  return ran;
}

/// One round of the block, and one piece of its deferred work: one at a time, so that copies arrive at
/// different moments. Returns whether anything happened.
bool advance(Block& mine) {
  const bool ran = run_round(mine);
  if (!failure.empty()) throw std::runtime_error("emulated kernel: " + failure);
  if (mine.deferred.empty()) return ran;
  const auto work = mine.deferred.front();
  mine.deferred.erase(mine.deferred.begin());
  work();
  return true;
}

void check_end(const Block& mine) {
  const auto stuck =
      std::count_if(mine.fibers.begin(), mine.fibers.end(), [](const Fiber& f) { return !f.done; });
  if (stuck > 0)
    throw std::runtime_error("emulated kernel: deadlock, " + std::to_string(stuck) + " threads of block " +
                             std::to_string(mine.number.x) + " wait for ever");
}

void begin_grid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (threads % 32 != 0 || threads > 1024) throw std::runtime_error("emulated kernel: an odd block size");
  if (shared_bytes > kSharedBytes) throw std::runtime_error("emulated kernel: too much shared memory");
  running_kernel = &kernel;
  dynamic_shared_bytes = shared_bytes;
  failure.clear();
  gridDim = {static_cast<unsigned>(blocks), 1, 1};
  blockDim = {static_cast<unsigned>(threads), 1, 1};
}

}  // namespace

void run_grid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  begin_grid(blocks, threads, shared_bytes, kernel);
  Block mine(threads);
  for (int i = 0; i < blocks; ++i) {
    mine.start(i);
    while (advance(mine)) {
    }
    check_end(mine);
  }
}

void run_cooperative_grid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  begin_grid(blocks, threads, shared_bytes, kernel);
  std::vector<std::unique_ptr<Block>> all;
  for (int i = 0; i < blocks; ++i) {
    all.push_back(std::make_unique<Block>(threads));
    all.back()->start(i);
  }
  // The first block that can goes on until it has to wait: the last one falls as far behind as the kernel
  // lets it, so that a wait that is too short shows. Every other grid favours the blocks the other way round.
  static bool backwards = false;
  backwards = !backwards;
  polls = 0;
  polled = false;
  for (int turn = 0; turn < blocks;) {
    bool ran = false;
    while (advance(*all[backwards ? blocks - 1 - turn : turn])) ran = true;
    turn = ran ? 0 : turn + 1;
    if (turn < blocks || !polled) continue;
    if (++polls == kMaxPolls) throw std::runtime_error("emulated kernel: blocks poll for ever");
    polled = false;
    turn = 0;
  }
  for (const auto& mine : all) check_end(*mine);
}

void wait_while(const uint32_t* word, uint32_t mask, uint32_t value) {
  if ((*word & mask) != value) return;
  Fiber& fiber = block->fibers[block->current];
  fiber.word = word;
  fiber.mask = mask;
  fiber.value = value;
  leave();
  fiber.word = nullptr;
}

void wait_for_others() {
  polled = true;
  wait_while(&polls, ~0u, polls);
}

void fail(const char* message) {
  failure = message;
  leave();
  std::abort();  // never resumed
}

const uint64_t* warp_gather(uint64_t mine, char collective) {
  Warp& warp = block->warps[threadIdx.x / 32];
  if (warp.arrived > 0 && warp.collective != collective)
    fail("lanes of a warp meet in different collectives");
  const uint32_t generation = warp.generation;
  uint64_t* brought = warp.brought[generation & 1];
  brought[threadIdx.x & 31] = mine;
  warp.collective = collective;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.generation;
  } else {
    wait_while(&warp.generation, ~0u, generation);
  }
  return brought;
}

void barrier(int number, int threads) {
  Barrier& barrier = block->barriers[number];
  const uint32_t generation = barrier.generation;
  if (++barrier.arrived == (threads == 0 ? static_cast<int>(blockDim.x) : threads)) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    wait_while(&barrier.generation, ~0u, generation);
  }
}

void defer(const std::function<void()>& work) {
  block->deferred.push_back(work);
}

uint8_t* shared_base() {
  return block->shared->bytes;
}

uint8_t* static_shared_base(size_t bytes) {
  const size_t at = (kSharedBytes - bytes) / 16 * 16;
  if (bytes > kSharedBytes || at < dynamic_shared_bytes) fail("too much shared memory");
  return block->shared->bytes + at;
}

}  // namespace emulation
}  // namespace gsa
