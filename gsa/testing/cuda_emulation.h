#pragma once
// Runs CUDA kernels on the CPU, so that they can be tested without a GPU: one thread block at a time, or all
// of a grid's where they wait for each other (a cooperative launch).
//
// Each CUDA thread is a fiber; the scheduler goes round the fibers of the running blocks, and a fiber runs
// until it has to wait for others (a barrier, a warp's collective, an mbarrier, a counter in memory). Blocks
// in which nobody can go on are reported as a deadlock. Include this header before any kernel: it defines
// GSA_EMULATE_CUDA, under which the headers of gsa/cuda leave their instructions to this file and to
// cuda_emulation_sm90.h and cuda_emulation_mma.h, and declares what the CUDA headers would, in namespace gsa.
// What kernels and launchers here do not use is not emulated. Warps are always whole: every collective wants
// all 32 lanes.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "gsa/testing/cuda_emulation_numbers.h"

// CUDA's own names, words of any type, and offsets that fit a block's shared memory.
// NOLINTBEGIN(bugprone-*,readability-identifier-naming)

#define GSA_EMULATE_CUDA
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

namespace gsa {

namespace emulation {

/// Runs the blocks one after the other.
void run_grid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel);

/// Runs the blocks side by side, each with shared memory of its own.
void run_cooperative_grid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel);

/// For fibers. Waits while (*word & mask) == value.
void wait_while(const uint32_t* word, uint32_t mask, uint32_t value);

/// For fibers that poll without wait_while. Waits until no other fiber of the grid can go on.
void wait_for_others();

/// Ends the run: run_grid throws std::runtime_error with this message.
[[noreturn]] void fail(const char* message);

/// What each lane of the warp brought to this collective; valid until the warp's next one but one. Lanes that
/// meet in different collectives fail.
const uint64_t* warp_gather(uint64_t mine, char collective);

/// Waits for `threads` fibers of the block at barrier `number`; 0 threads: all of the block.
void barrier(int number, int threads);

/// Work of a unit of its own, like the copy engine's: done at the end of the scheduler's round, not at once.
void defer(const std::function<void()>& work);

/// The running block's shared memory: what the launch asked for, and behind it `bytes` of static memory.
uint8_t* shared_base();
uint8_t* static_shared_base(size_t bytes);

/// The SMs that launchers see.
inline int multiprocessors = 2;

}  // namespace emulation

// ---- types and the runtime's functions

struct dim3 {
  unsigned x = 0, y = 0, z = 0;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNotSupported };
enum { cudaDevAttrMultiProcessorCount, cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct EmulatedStream*;

inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = emulation::multiprocessors;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

struct cudaLaunchAttribute {
  int id = 0;
  struct {
    int cooperative = 0;
    int programmaticStreamSerializationAllowed = 0;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeProgrammaticStreamSerialization = 6 };

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    cooperative |= config->attrs[i].id == cudaLaunchAttributeCooperative && config->attrs[i].val.cooperative;
  (cooperative ? emulation::run_cooperative_grid : emulation::run_grid)(
      static_cast<int>(config->gridDim.x), static_cast<int>(config->blockDim.x), config->dynamicSmemBytes,
      [&] { kernel(arguments...); });
  return cudaSuccess;
}

// ---- memory

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}

// ---- atomics: fibers never run at the same time

template <class T, class V>
T atomicAdd(T* at, V value) {
  const T old = *at;
  *at = static_cast<T>(old + value);
  return old;
}
template <class T, class V>
T atomicSub(T* at, V value) {
  return atomicAdd(at, T{} - static_cast<T>(value));
}
template <class T, class V>
T atomicOr(T* at, V value) {
  const T old = *at;
  *at = old | value;
  return old;
}
template <class T, class V>
T atomicMax(T* at, V value) {
  const T old = *at;
  *at = max(old, static_cast<T>(value));
  return old;
}

// ---- barriers and a warp's collectives

inline void __syncthreads() {
  emulation::barrier(0, 0);
}
inline void __syncwarp() {
  emulation::warp_gather(0, 'w');
}

namespace emulation {

template <class T>
uint64_t to_word(T x) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &x, sizeof(T));
  return word;
}
template <class T>
T from_word(uint64_t word) {
  T x;
  std::memcpy(&x, &word, sizeof(T));
  return x;
}

inline int lane() {
  return static_cast<int>(threadIdx.x & 31);
}

template <class T>
T shuffle(uint32_t mask, T x, int from, char collective) {
  if (mask != 0xffffffffu) fail("a shuffle of less than a warp");
  const uint64_t* all = warp_gather(to_word(x), collective);
  return from >= 0 && from < 32 ? from_word<T>(all[from]) : x;
}

template <class T, class Combine>
T reduce(uint32_t mask, T x, Combine combine) {
  if (mask != 0xffffffffu) fail("a reduction over less than a warp");
  const uint64_t* all = warp_gather(to_word(x), 'r');
  T result = from_word<T>(all[0]);
  for (int i = 1; i < 32; ++i) result = combine(result, from_word<T>(all[i]));
  return result;
}

}  // namespace emulation

template <class T>
T __shfl_sync(uint32_t mask, T x, int from) {
  return emulation::shuffle(mask, x, from & 31, 's');
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T x, int bits) {
  return emulation::shuffle(mask, x, emulation::lane() ^ bits, 'x');
}
template <class T>
T __shfl_up_sync(uint32_t mask, T x, int distance) {
  return emulation::shuffle(mask, x, emulation::lane() - distance, 'u');
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline long long __double_as_longlong(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline uint32_t __ballot_sync(uint32_t mask, bool mine) {
  const uint32_t bit = static_cast<uint32_t>(mine) << emulation::lane();
  return emulation::reduce(mask, bit, [](uint32_t a, uint32_t b) { return a | b; });
}
inline int __any_sync(uint32_t mask, bool mine) {
  return __ballot_sync(mask, mine) != 0;
}
template <class T>
T __reduce_add_sync(uint32_t mask, T x) {
  return emulation::reduce(mask, x, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_min_sync(uint32_t mask, T x) {
  return emulation::reduce(mask, x, [](T a, T b) { return min(a, b); });
}
template <class T>
T __reduce_max_sync(uint32_t mask, T x) {
  return emulation::reduce(mask, x, [](T a, T b) { return max(a, b); });
}

inline size_t __cvta_generic_to_shared(const void* pointer) {
  return static_cast<size_t>(static_cast<const uint8_t*>(pointer) - emulation::shared_base());
}

// ---- gsa/cuda/{launch,reduction}.h

namespace cuda {

inline float fast_exp2(float x) {
  return std::exp2(x);
}
inline float fast_tanh(float x) {
  return std::tanh(x);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, size_t shared_bytes, cudaStream_t,
                   const Arguments&... arguments) {
  emulation::run_grid(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_early(void (*kernel)(Parameters...), int blocks, int threads, size_t shared_bytes,
                         cudaStream_t stream, const Arguments&... arguments) {
  return launch(kernel, blocks, threads, shared_bytes, stream, arguments...);
}

template <class T>
T& shared_memory() {
  return *reinterpret_cast<T*>(emulation::shared_base());
}

template <int kThreads>
void named_barrier(int barrier) {
  emulation::barrier(barrier, kThreads);
}

}  // namespace cuda
}  // namespace gsa

// NOLINTEND(bugprone-*,readability-identifier-naming)
