#include "gsa/testing/timing.h"

#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace gsa::testing {
namespace {

constexpr int64_t kGpuFlushBytes = int64_t{256} << 20;  // an H200 has 60 MB of L2
constexpr int64_t kCpuFlushBytes = int64_t{64} << 20;

/// Milliseconds of one run after a flush.
class Stopwatch {
 public:
  explicit Stopwatch(const at::Device& device)
      : device_(device),
        flush_(at::empty({device.is_cpu() ? kCpuFlushBytes : kGpuFlushBytes},
                         at::TensorOptions().dtype(at::kByte).device(device))) {}

  double run(const std::function<void()>& call) {
    flush_.fill_(++runs_ % 128);
    return device_.is_cpu() ? run_here(call) : run_on_stream(call);
  }

 private:
  double run_here(const std::function<void()>& call) const {
    const auto start = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

  double run_on_stream(const std::function<void()>& call) const {
    const c10::Stream stream = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
    c10::Event begin(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    c10::Event end(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    begin.record(stream);
    call();
    end.record(stream);
    end.synchronize();
    return begin.elapsedTime(end);
  }

  at::Device device_;
  at::Tensor flush_;
  int runs_ = 0;
};

/// A line of /proc/self/status in MiB, e.g. "VmHWM:".
double status_mib(const char* field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(field, 0) == 0) return std::stod(line.substr(std::strlen(field))) / 1024;
  return 0;
}

}  // namespace

Timing time_call(const at::Device& device, const TimingOptions& options, const std::function<void()>& call) {
  Stopwatch watch(device);
  double spent = 0;
  double last = 0;
  for (int i = 0; i < options.warmup && spent < options.budget_seconds * 250; ++i)
    spent += last = watch.run(call);
  const int affordable =
      last > 0 ? static_cast<int>(options.budget_seconds * 1000 / last) : options.iterations;
  std::vector<double> times(std::clamp(affordable, 1, options.iterations));
  for (double& time : times) time = watch.run(call);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back(), static_cast<int>(times.size())};
}

double peak_memory_mib(const at::Device& device, const std::function<void()>& call) {
  if (device.is_cpu()) {
    malloc_trim(0);                                 // what earlier calls left behind would hide growth
    std::ofstream("/proc/self/clear_refs") << "5";  // resets the high-water mark
    const double before = status_mib("VmRSS:");
    call();
    return std::max(0.0, status_mib("VmHWM:") - before);
  }
  auto* allocator = at::getDeviceAllocator(device.type());
  const c10::DeviceIndex index = device.has_index() ? device.index() : 0;
  auto allocated = [&] { return allocator->getDeviceStats(index).allocated_bytes.at(0); };
  allocator->resetPeakStats(index);
  const auto before = allocated().current;
  call();
  return static_cast<double>(allocated().peak - before) / (1 << 20);
}

}  // namespace gsa::testing
