// Registers the CUDA operators with torch.
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <mutex>
#include <optional>

#include "cuda_backend.h"

namespace kanerva::cuda {

namespace {

struct Cuda {
  static constexpr const char* kName = "a CUDA device";

  static int32_t device_type() { return aoti_torch_device_type_cuda(); }

  class Current {
   public:
    explicit Current(int32_t index) {
      if (torch::stable::accelerator::getCurrentDeviceIndex() != index) guard_.emplace(index);
    }

   private:
    std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  };

  // What current_device() says of the current device, which has this index.
  static const Device& device(int32_t index) {
    constexpr size_t kDevices = 64;  // the most that torch knows
    static std::array<Device, kDevices> devices;
    static std::array<std::once_flag, kDevices> asked;
    const size_t i = size_t(index);
    STD_TORCH_CHECK(i < kDevices, "cuda:", index, ": at most ", kDevices, " devices are supported");
    std::call_once(asked[i], [&] { devices[i] = current_device(); });
    return devices[i];
  }

  static Stream stream(int32_t index) {
    void* found = nullptr;
    KANERVA_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &found));
    return static_cast<Stream>(found);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kanerva, CUDA, m) { ops::register_operators<Backend<Cuda>>(m); }

}  // namespace kanerva::cuda
