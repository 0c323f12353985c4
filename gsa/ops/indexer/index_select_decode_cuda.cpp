// The torch side of index_select's decode kernel: which problems it takes, allocation, launch.

#include "gsa/ops/indexer/index_select_decode_cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gsa/base/check.h"
#include "gsa/ops/indexer/index_select_decode.h"
#include "gsa/ops/indexer/index_select_problem.h"

namespace gsa {
namespace {

constexpr const char* kOp = "index_select";

/// bf16, or FP8 for the dimensions that have a kernel for it; bf16 holds e4m3 exactly.
at::Tensor as_kernel_dtype(const at::Tensor& index_key) {
  const int64_t dim = index_key.size(2);
  const bool float8 = index_key.scalar_type() == at::kFloat8_e4m3fn && (dim == 64 || dim == 128);
  return float8 ? index_key : index_key.to(at::kBFloat16);
}

/// Each token's index key is contiguous and follows the one before, 16-byte aligned: views of a cache are.
bool loadable(const at::Tensor& index_key) {
  return index_key.stride(2) == 1 && (index_key.size(1) == 1 || index_key.stride(1) == index_key.size(2)) &&
         reinterpret_cast<uintptr_t>(index_key.const_data_ptr()) % 16 == 0;
}

/// Asked of the runtime, not of ATen: libgsa is not linked to libtorch_cuda.
int device_attribute(cudaDeviceAttr attribute, const at::Tensor& tensor) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, tensor.get_device()));
  return value;
}

/// Device memory that stays with a stream, so that its zeroed part need not be zeroed for every token. A call
/// leaves zero what it was given zero; what lies beyond that may hold anything.
struct StreamWorkspace {
  at::Tensor memory;
  size_t zeroed = 0;
};

/// Workspaces of captured calls. A graph owns one per call; when the graph and all made from it are gone, the
/// next capture may have it.
constexpr size_t kMaxGraphWorkspace = size_t{16} << 20;

struct FreeWorkspaces {
  std::mutex mutex;
  std::vector<StreamWorkspace> all;

  static FreeWorkspaces& instance() {
    static auto& instance = *new FreeWorkspaces;  // outlives CUDA
    return instance;
  }
};

/// Memory from outside the capture's pool, whose part to be zero is zero when this returns.
StreamWorkspace make_graph_workspace(size_t bytes, size_t zeroed, const at::TensorOptions& options) {
  const c10::DeviceIndex device = options.device().index();
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
  c10::cuda::CUDAStream side = c10::cuda::getStreamFromPool(false, device);
  for (auto status = cudaStreamCaptureStatusActive;; side = c10::cuda::getStreamFromPool(false, device)) {
    C10_CUDA_CHECK(cudaStreamIsCapturing(side.stream(), &status));
    if (status == cudaStreamCaptureStatusNone) break;
  }
  const c10::cuda::CUDAStreamGuard guard(side);
  StreamWorkspace workspace{at::empty({static_cast<int64_t>(bytes)}, options), zeroed};
  C10_CUDA_CHECK(cudaMemsetAsync(workspace.memory.mutable_data_ptr(), 0, zeroed, side.stream()));
  C10_CUDA_CHECK(cudaStreamSynchronize(side.stream()));
  return workspace;
}

/// Gives the graph under capture a workspace that every replay finds and leaves zero where it must be.
void* graph_workspace(size_t bytes, size_t zeroed, const at::TensorOptions& options, cudaStream_t stream) {
  FreeWorkspaces& free = FreeWorkspaces::instance();
  auto workspace = std::make_unique<StreamWorkspace>();
  {
    const std::lock_guard<std::mutex> lock(free.mutex);
    const auto found = std::find_if(free.all.begin(), free.all.end(), [&](const StreamWorkspace& w) {
      return w.memory.device() == options.device() && static_cast<size_t>(w.memory.numel()) >= bytes &&
             w.zeroed >= zeroed;
    });
    if (found != free.all.end()) {
      *workspace = std::move(*found);
      free.all.erase(found);
    }
  }
  if (!workspace->memory.defined()) *workspace = make_graph_workspace(bytes, zeroed, options);
  // Where the parts lie depends on the shapes: only what this graph leaves zero is zero for the next.
  workspace->zeroed = zeroed;
  void* memory = workspace->memory.mutable_data_ptr();
  auto status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph));
  const auto give_back = [](void* given) {  // must not call CUDA
    const std::unique_ptr<StreamWorkspace> owned(static_cast<StreamWorkspace*>(given));
    FreeWorkspaces& free = FreeWorkspaces::instance();
    const std::lock_guard<std::mutex> lock(free.mutex);
    free.all.push_back(std::move(*owned));
  };
  cudaUserObject_t object = nullptr;
  C10_CUDA_CHECK(
      cudaUserObjectCreate(&object, workspace.get(), give_back, 1, cudaUserObjectNoDestructorSync));
  static_cast<void>(workspace.release());  // the object's
  C10_CUDA_CHECK(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove));
  return memory;
}

/// Launches with the stream's workspace; under a capture with memory of the graph's own, as a graph may be
/// replayed on any stream, beside anything. Where much memory is needed, that comes from the graph's pool,
/// which other calls use between replays, so that the launch zeroes it.
void launch(IndexSelectDecodeParams& params, const at::Tensor& like) {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount, like);
  const size_t bytes = index_select_decode_workspace_bytes(params, multiprocessors);
  const size_t zeroed = index_select_decode_zeroed_bytes(params, multiprocessors);
  const auto options = like.options().dtype(at::kByte);
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    at::Tensor memory;
    params.workspace_zeroed = bytes <= kMaxGraphWorkspace;
    if (params.workspace_zeroed) {
      params.workspace = graph_workspace(bytes, zeroed, options, stream.stream());
    } else {
      memory = at::empty({static_cast<int64_t>(bytes)}, options);
      params.workspace = memory.mutable_data_ptr();
    }
    C10_CUDA_CHECK(launch_index_select_decode(params, stream.stream()));
    return;
  }
  static std::mutex mutex;
  static auto& workspaces = *new std::map<std::pair<int, c10::StreamId>, StreamWorkspace>;  // outlives CUDA
  const std::lock_guard<std::mutex> lock(mutex);
  StreamWorkspace& workspace = workspaces[{stream.device_index(), stream.id()}];
  if (!workspace.memory.defined() || static_cast<size_t>(workspace.memory.numel()) < bytes) {
    workspace.memory = at::empty({static_cast<int64_t>(bytes)}, options);
    workspace.zeroed = 0;
  }
  params.workspace = workspace.memory.mutable_data_ptr();
  params.workspace_zeroed = zeroed <= workspace.zeroed;
  workspace.zeroed = 0;  // should the launch fail
  C10_CUDA_CHECK(launch_index_select_decode(params, stream.stream()));
  workspace.zeroed = zeroed;
}

}  // namespace

std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>> index_select_decode(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean,
    const IndexSelectOptions& options, const std::optional<at::Tensor>& log_scale,
    const std::optional<at::Tensor>& lengths) {
  if (index_query.size(1) > decode::kMaxTokens || index_query.scalar_type() != at::kBFloat16)
    return std::nullopt;
  const c10::cuda::CUDAGuard guard(index_query.device());
  const at::Tensor typed_key = as_kernel_dtype(index_key);
  const at::Tensor key = loadable(typed_key) ? typed_key : typed_key.clone(at::MemoryFormat::Contiguous);
  IndexSelectDecodeParams params;
  set_problem(params, index_query, key, options);
  params.key_batch_stride = params.batch == 1 ? 0 : key.stride(0);
  params.float8_keys = key.scalar_type() == at::kFloat8_e4m3fn;
  if (device_attribute(cudaDevAttrComputeCapabilityMajor, key) != 9 || !index_select_decode_supported(params))
    return std::nullopt;
  at::Tensor query = index_query.contiguous();
  if (reinterpret_cast<uintptr_t>(query.const_data_ptr()) % 16 != 0) query = query.clone();
  const at::Tensor weight = as_floats(head_weight, query), bias = as_floats(head_bias, query);
  const at::Tensor mean = as_floats(running_mean, query), scale = as_floats(log_scale, query);
  at::Tensor row_lengths;
  if (lengths) {
    check_shape(kOp, "lengths", *lengths, {params.batch}, "[B]");
    check_dtype(kOp, "lengths", *lengths, at::kInt);
    check_same_device(kOp, "lengths", *lengths, "index_query", index_query);
    row_lengths = lengths->contiguous();
    params.lengths = row_lengths.const_data_ptr<int32_t>();
  }
  const auto ints = query.options().dtype(at::kInt);
  const at::Tensor indices = at::empty({params.batch, params.queries, params.capacity}, ints);
  const at::Tensor counts = at::empty({params.batch, params.queries}, ints);
  const at::Tensor statistic = at::empty({params.batch, params.queries}, query.options().dtype(at::kFloat));
  params.index_query = query.const_data_ptr();
  params.index_key = key.const_data_ptr();
  params.head_weight = weight.const_data_ptr<float>();
  params.head_bias = floats_or_null(bias);
  params.running_mean = floats_or_null(mean);
  params.log_scale = floats_or_null(scale);
  params.indices = indices.mutable_data_ptr<int32_t>();
  params.counts = counts.mutable_data_ptr<int32_t>();
  params.statistic = statistic.mutable_data_ptr<float>();
  launch(params, query);
  return std::make_tuple(indices, counts, statistic);
}

}  // namespace gsa
