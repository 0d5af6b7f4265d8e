// Registers the CUDA operators for the CPU's tensors, in the place of the CPU's own kernels: with
// runtime.cpp for the CUDA runtime, the operators' tests run on the interpreted kernels.
#include "../../csrc/torch/cuda_backend.h"

namespace {

struct Interpreted {
  static constexpr const char* kName = "the CPU";

  static int32_t device_type() { return aoti_torch_device_type_cpu(); }

  struct Current {
    explicit Current(int32_t) {}
  };

  // Asked anew at every call: what stands for the device is in the environment.
  static kanerva::cuda::Device device(int32_t) { return kanerva::cuda::current_device(); }

  static kanerva::cuda::Stream stream(int32_t) { return {}; }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  kanerva::ops::register_operators<kanerva::cuda::Backend<Interpreted>>(m);
}
