#include "gsa/base/device.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <string>

#include "gsa/base/error.h"

namespace gsa {
namespace {

int cuda_device_count() {
  // ATen caches "no CUDA" at the first question, so the driver is asked before it.
  if (::dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == nullptr) return 0;
  if (::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) return 0;
  return at::globalContext().hasCUDA() ? static_cast<int>(at::detail::getCUDAHooks().deviceCount()) : 0;
}

int cached_device_count() {
  static const int count = cuda_device_count();
  return count;
}

}  // namespace

bool cuda_available() {
  return cached_device_count() > 0;
}

c10::Device parse_device(std::string_view name) {
  if (name == "cpu") return c10::Device(c10::kCPU);
  if (name == "auto") return cuda_available() ? c10::Device(c10::kCUDA, 0) : c10::Device(c10::kCPU);
  if (name == "cuda" || name.starts_with("cuda:")) {
    const std::string number(name == "cuda" ? "0" : name.substr(5));
    if (number.empty() || number.size() > 3 || number.find_first_not_of("0123456789") != std::string::npos) {
      fail("device: expected cuda or cuda:N, got '", name, "'");
    }
    const int index = std::stoi(number);
    if (index >= cached_device_count())
      fail("device: '", name, "' expected a CUDA device; this machine has ", cached_device_count());
    return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
  }
  fail("device: expected auto, cpu, cuda or cuda:N, got '", name, "'");
}

}  // namespace gsa
