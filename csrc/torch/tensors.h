// Between torch tensors and the numerical core: views, checks, outputs. Shared by the devices.
//
// A Backend stands for where an operator runs. It is made from the operator's first tensor and has
//   check_device(tensor, name)       throws unless the tensor is there
//   device_type(), device_index()    where outputs go
//   run(const <Op>Args&)             for every operator of common/arguments.h
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>

#include "../common/arguments.h"

// torch 2.13 renamed the check of its C calls, with messages; 2.11 and 2.12 have the older one.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define KANERVA_TORCH_CHECK(call) STABLE_TORCH_ERROR_CODE_CHECK(call)
#else
#define KANERVA_TORCH_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace kanerva::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64, got ",
                  torch::headeronly::toString(t.scalar_type()));
}

inline const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return "float32";
    case Dtype::float64:
      return "float64";
    case Dtype::float16:
      return "float16";
    case Dtype::bfloat16:
      return "bfloat16";
  }
  return "";
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "(";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

// Of at most three dimensions.
struct Shape {
  int64_t dims = 0;
  int64_t size[3] = {};

  Shape(std::initializer_list<int64_t> sizes) {
    for (const int64_t each : sizes) add(each);
  }
  void add(int64_t each) { size[dims++] = each; }
  const int64_t* begin() const { return size; }
  const int64_t* end() const { return size + dims; }
};

inline void check_shape(const Tensor& t, const char* name, const Shape& shape) {
  const auto sizes = t.sizes();
  const bool same = std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end());
  STD_TORCH_CHECK(same, name, " must have shape ", shape_text(shape), ", got ", shape_text(sizes));
}

// Of what gives an operator its sizes.
inline void check_dimensions(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 3, name, " must have three dimensions, got shape ",
                  shape_text(t.sizes()));
}

// A view of t with leading batch dimension; the shape is checked, any strides are fine.
template <class Backend>
View view(const Backend& on, const Tensor& t, const char* name, const Shape& shape) {
  on.check_device(t, name);
  check_shape(t, name, shape);
  View v;
  v.dtype = dtype_of(t, name);
  v.data = t.data_ptr();
  const auto strides = t.strides();
  std::copy(strides.begin(), strides.end(), v.stride);
  return v;
}

template <class Backend>
View view(const Backend& on, const OptionalTensor& t, const char* name, const Shape& shape) {
  return t.has_value() ? view(on, *t, name, shape) : View{};
}

// Like view, for tensors in the dtype of the state.
template <class Backend, class T>
View state_view(const Backend& on, const T& t, const char* name, const Shape& shape, Dtype state) {
  const View v = view(on, t, name, shape);
  STD_TORCH_CHECK(!v || v.dtype == state, name, " must be ", dtype_name(state),
                  " like the state, got ", dtype_name(v.dtype));
  return v;
}

template <class Backend>
View mask_view(const Backend& on, const OptionalTensor& t, const Shape& shape) {
  if (!t.has_value()) return View{};
  on.check_device(*t, "mask");
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Bool, "mask must be bool, got ",
                  torch::headeronly::toString(t->scalar_type()));
  check_shape(*t, "mask", shape);
  View v;
  v.data = t->data_ptr();
  const auto strides = t->strides();
  std::copy(strides.begin(), strides.end(), v.stride);
  return v;
}

inline Dtype state_dtype(const Tensor& t, const char* name) {
  const Dtype d = dtype_of(t, name);
  STD_TORCH_CHECK(d == Dtype::float32 || d == Dtype::float64, name,
                  " must be float32 or float64, got ", dtype_name(d));
  return d;
}

inline int32_t torch_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return aoti_torch_dtype_float32();
    case Dtype::float64:
      return aoti_torch_dtype_float64();
    case Dtype::float16:
      return aoti_torch_dtype_float16();
    case Dtype::bfloat16:
      return aoti_torch_dtype_bfloat16();
  }
  return 0;
}

// A new contiguous tensor. By the C shim itself: torch::stable::empty looks the operator up by
// name, which costs 1 us a tensor.
template <class Backend>
Tensor new_tensor(const Backend& on, int64_t dims, const int64_t* shape, const int64_t* strides,
                  int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  KANERVA_TORCH_CHECK(aoti_torch_empty_strided(dims, shape, strides, dtype, on.device_type(),
                                               on.device_index(), &handle));
  return Tensor(handle);
}

// A new contiguous tensor, whose view `v` becomes.
template <class Backend>
Tensor output(const Backend& on, View& v, Dtype dtype, const Shape& shape) {
  int64_t stride = 1;
  for (int64_t d = shape.dims - 1; d >= 0; --d) {
    v.stride[d] = stride;
    stride *= std::max<int64_t>(1, shape.size[d]);
  }
  Tensor t = new_tensor(on, shape.dims, shape.size, v.stride, torch_dtype(dtype));
  v.dtype = dtype;
  v.data = t.data_ptr();
  return t;
}

}  // namespace kanerva::ops
