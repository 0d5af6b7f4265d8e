// The operators by the CUDA launchers, as tensors.h asks for them.
#pragma once

#include "../cuda/launchers.h"
#include "operators.h"

namespace kanerva::cuda {

inline int32_t type_of(const ops::Tensor& t) {
  int32_t type = 0;
  KANERVA_TORCH_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

inline int32_t index_of(const ops::Tensor& t) {
  int32_t index = 0;
  KANERVA_TORCH_CHECK(aoti_torch_get_device_index(t.get(), &index));
  return index;
}

// A Platform is what runs the kernels. It has
//
//   kName, device_type()              of the tensors that it takes
//   Current current(index)            makes a device current while it lives
//   device(index), stream(index)      the device, and torch's current stream there
template <class Platform>
class Backend {
 public:
  explicit Backend(const ops::Tensor& first) : index_(index_of(first)) {
    STD_TORCH_CHECK(type_of(first) == device_type(), "the state must be on ", Platform::kName,
                    " like the other tensors");
  }

  void check_device(const ops::Tensor& t, const char* name) const {
    STD_TORCH_CHECK(type_of(t) == device_type() && index_of(t) == index_, name,
                    " must be on the device of the state; all tensors of a call must be on one");
  }
  static int32_t device_type() { return Platform::device_type(); }
  int32_t device_index() const { return index_; }

#define KANERVA_OPERATOR(op, Args) \
  void run(const Args& args) const { launch(args, cuda::op##_workspace, cuda::op); }

  KANERVA_OPERATORS(KANERVA_OPERATOR)
#undef KANERVA_OPERATOR

 private:
  // Exceptions pass through torch's calling convention and become RuntimeErrors in Python.
  template <class Args>
  void launch(const Args& args, size_t (*workspace)(const Args&, const Device&),
              void (*launcher)(const Args&, const Launch&)) const {
    if (args.n.B == 0) return;
    const typename Platform::Current current(index_);
    Launch to;
    to.stream = Platform::stream(index_);
    to.device = Platform::device(index_);
    ops::Tensor
        scratch;  // given back after the launch: torch's allocator keeps to the stream's order
    if (const int64_t bytes = int64_t(workspace(args, to.device)); bytes > 0) {
      const int64_t stride = 1;
      scratch = ops::new_tensor(*this, 1, &bytes, &stride, aoti_torch_dtype_uint8());
      to.workspace = scratch.data_ptr();
    }
    launcher(args, to);
  }

  const int32_t index_;
};

}  // namespace kanerva::cuda
