#include "gsa/ops/indexer/decode_workspace_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace gsa {
namespace {

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

}  // namespace

void with_decode_workspace(size_t bytes, size_t zeroed, const at::Tensor& like,
                           const std::function<void(void* memory, bool is_zero)>& launch) {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  const auto options = like.options().dtype(at::kByte);
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    if (bytes <= kMaxGraphWorkspace)
      return launch(graph_workspace(bytes, zeroed, options, stream.stream()), true);
    const at::Tensor memory = at::empty({static_cast<int64_t>(bytes)}, options);
    return launch(memory.mutable_data_ptr(), false);
  }
  static std::mutex mutex;
  static auto& workspaces = *new std::map<std::pair<int, c10::StreamId>, StreamWorkspace>;  // outlives CUDA
  const std::lock_guard<std::mutex> lock(mutex);
  StreamWorkspace& workspace = workspaces[{stream.device_index(), stream.id()}];
  if (!workspace.memory.defined() || static_cast<size_t>(workspace.memory.numel()) < bytes) {
    workspace.memory = at::empty({static_cast<int64_t>(bytes)}, options);
    workspace.zeroed = 0;
  }
  const bool is_zero = zeroed <= workspace.zeroed;
  workspace.zeroed = 0;  // should the launch fail
  launch(workspace.memory.mutable_data_ptr(), is_zero);
  workspace.zeroed = zeroed;
}

}  // namespace gsa
