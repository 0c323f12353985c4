// How the decode kernels' index keys come in: every warp has a ring of its own in shared memory, filled by
// the copy engine. A warp refills the slot that it has just read, so warps wait for their own bytes only, and
// registers do not limit how many bytes are in flight.
#pragma once

#include "gsa/cuda/tma.h"
#include "gsa/ops/indexer/index_select_decode_state.cuh"

namespace gsa::decode {

// A warp's steps through a part whose keys lie together: kBytes of every so many.
template <int kStepBytes>
class PartSteps {
 public:
  static constexpr int kBytes = kStepBytes;

  // `keys` points to the row's first key.
  __device__ __forceinline__ PartSteps(const void* keys, int row_bytes, const Part& part, int warps)
      : source_(static_cast<const char*>(keys) + static_cast<int64_t>(part.begin) * row_bytes),
        stride_(warps * kBytes),
        end_(static_cast<int64_t>(part.end - part.begin) * row_bytes),
        next_(static_cast<int64_t>(threadIdx.x / 32) * kBytes) {}

  // Calls load(from, bytes) for the next step, if there is one.
  template <typename Load>
  __device__ __forceinline__ void advance(Load&& load) {
    if (next_ >= end_) return;
    load(source_ + next_, static_cast<uint32_t>(min(end_ - next_, static_cast<int64_t>(kBytes))));
    next_ += stride_;
  }

 private:
  const char* source_;
  int stride_;
  int64_t end_, next_;  // bytes from the part's begin
};

template <class Steps>
class KeyRing {
  static constexpr int kStepBytes = Steps::kBytes;
  static_assert(kStepBytes <= kRingBytes && 2 * kRingBytes <= kMaxRingSteps * kStepBytes);

 public:
  // `memory` points to the block's rings. Nothing else need be ready: the first loads start here.
  __device__ __forceinline__ KeyRing(Shared& shared, void* memory, const Layout& layout, const Steps& next)
      : slots_(static_cast<char*>(memory) + threadIdx.x / 32 * layout.ring_bytes),
        full_(shared.full[threadIdx.x / 32]),
        steps_(layout.ring_bytes / kStepBytes),
        next_(next) {
    if (threadIdx.x % 32 == 0 && static_cast<int>(threadIdx.x) / 32 < layout.scoring_warps) {
#pragma unroll 1
      for (int i = 0; i < steps_; ++i) cuda::mbarrier_init(full_ + i, 1);
      cuda::mbarrier_init_fence();
#pragma unroll 1
      for (int i = 0; i < steps_; ++i) request(i);
    }
    __syncwarp();
  }

  // The next step's keys, row after row; what lies behind the part's last key may be anything.
  __device__ __forceinline__ const uint4* wait() {
    cuda::mbarrier_wait(full_ + slot_, parity_);
    return reinterpret_cast<const uint4*>(slots_ + slot_ * kStepBytes);
  }

  // Call when products have used what the warp's lanes read.
  __device__ __forceinline__ void refill() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) request(slot_);
    if (++slot_ == steps_) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  __device__ __forceinline__ void request(int slot) {
    next_.advance([&](const char* from, uint32_t bytes) {
      cuda::mbarrier_arrive_expect(full_ + slot, bytes);
      cuda::bulk_load(slots_ + slot * kStepBytes, from, bytes, full_ + slot);
    });
  }

  char* slots_;
  uint64_t* full_;
  int steps_, slot_ = 0;
  uint32_t parity_ = 0;
  Steps next_;  // lane 0's matters
};

}  // namespace gsa::decode
