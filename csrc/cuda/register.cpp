// Registers the CUDA operators with torch. With KANERVA_ON_HOST, which needs no CUDA, they are
// registered for the CPU instead, in place of the CPU's own: so are the kernels tested.
#include <array>
#include <mutex>
#include <optional>

#include "../torch/adaptive_write.h"
#include "../torch/bayes_write.h"
#include "../torch/causal_scan.h"
#include "../torch/causal_step.h"
#include "../torch/forget.h"
#include "../torch/memory_kl.h"
#include "../torch/read.h"
#include "../torch/recall.h"
#include "../torch/solve_addresses.h"
#include "../torch/statistics.h"
#include "launchers.h"

#ifndef KANERVA_ON_HOST
#include <torch/csrc/stable/accelerator.h>
#endif

namespace kanerva::cuda {

namespace {

using ops::Tensor;

int32_t type_of(const Tensor& t) {
  int32_t type = 0;
  KANERVA_TORCH_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

int32_t index_of(const Tensor& t) {
  int32_t index = 0;
  KANERVA_TORCH_CHECK(aoti_torch_get_device_index(t.get(), &index));
  return index;
}

#ifdef KANERVA_ON_HOST

constexpr const char* kDeviceName = "the CPU";

int32_t device_type() { return aoti_torch_device_type_cpu(); }

struct Current {
  explicit Current(int32_t) {}
};

// Asked anew at every call: tests vary it.
Device device(int32_t) { return current_device(); }

Stream stream(int32_t) { return {}; }

#else

constexpr const char* kDeviceName = "a CUDA device";

int32_t device_type() { return aoti_torch_device_type_cuda(); }

// Makes a device current while it lives.
class Current {
 public:
  explicit Current(int32_t index) {
    if (torch::stable::accelerator::getCurrentDeviceIndex() != index) guard_.emplace(index);
  }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// What current_device() says of the current device, which has this index.
const Device& device(int32_t index) {
  constexpr size_t kDevices = 64;  // the most that torch knows
  static std::array<Device, kDevices> devices;
  static std::array<std::once_flag, kDevices> asked;
  const size_t i = size_t(index);
  STD_TORCH_CHECK(i < kDevices, "cuda:", index, ": at most ", kDevices, " devices are supported");
  std::call_once(asked[i], [&] { devices[i] = current_device(); });
  return devices[i];
}

Stream stream(int32_t index) {
  void* found = nullptr;
  KANERVA_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &found));
  return static_cast<Stream>(found);
}

#endif

class Backend {
 public:
  explicit Backend(const Tensor& first) : index_(index_of(first)) {
    STD_TORCH_CHECK(type_of(first) == device_type(), "the state must be on ", kDeviceName,
                    " like the other tensors");
  }

  void check_device(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(type_of(t) == device_type() && index_of(t) == index_, name,
                    " must be on the device of the state; all tensors of a call must be on one");
  }
  int32_t device_type() const { return cuda::device_type(); }
  int32_t device_index() const { return index_; }

#define KANERVA_OPERATOR(op, Args) \
  void op(const Args& args) const { run(args, cuda::op##_workspace, cuda::op); }

  KANERVA_OPERATORS(KANERVA_OPERATOR)
#undef KANERVA_OPERATOR

 private:
  // Exceptions pass through torch's calling convention and become RuntimeErrors in Python.
  template <class Args>
  void run(const Args& args, size_t (*workspace)(const Args&, const Device&),
           void (*launcher)(const Args&, const Launch&)) const {
    if (args.n.B == 0) return;
    const Current current(index_);
    Launch launch;
    launch.stream = stream(index_);
    launch.device = device(index_);
    Tensor scratch;  // given back after the launch: torch's allocator keeps to the stream's order
    if (const int64_t bytes = int64_t(workspace(args, launch.device)); bytes > 0) {
      const int64_t stride = 1;
      scratch = ops::new_tensor(*this, 1, &bytes, &stride, aoti_torch_dtype_uint8());
      launch.workspace = scratch.data_ptr();
    }
    launcher(args, launch);
  }

  const int32_t index_;
};

}  // namespace

#ifdef KANERVA_ON_HOST
STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(kanerva, CUDA, m) {
#endif
#define KANERVA_REGISTER(op, Args) m.impl(#op, TORCH_BOX(&ops::op<Backend>));
  KANERVA_OPERATORS(KANERVA_REGISTER)
#undef KANERVA_REGISTER
  m.impl("causal_step", TORCH_BOX(&ops::causal_step<Backend>));
}

}  // namespace kanerva::cuda
