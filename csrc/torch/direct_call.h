// Calls of the public functions that need nothing but the operator: by their raw arguments, looked
// through and passed to the dispatcher without Python in between.
//
// The object that direct_call() makes takes the backend's name, whether to check the results, and
// the arguments of the raw operator. Those may have a number, or a tensor without dimensions, for
// all noise variances or all ridges. It gives None where any argument has to be cast, expanded or
// reshaped, and wherever PyTorch has more to do than to dispatch: modes, subclasses, transforms,
// tangents, tracing. Then Python finds the way (ops/_autograd.py), and what is wrong.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/FuncTorchTLS.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace kanerva {

// An argument as kanerva_ext._checks.Arg has it.
struct ArgumentKind {
  std::string dims;  // after the batch, as letters of K, C and T
  std::string kind;
  bool optional;

  bool is_scalar() const { return kind == "noise" || kind == "ridge"; }
};

class DirectCall {
 public:
  DirectCall(c10::OperatorHandle op, std::vector<ArgumentKind> arguments, pybind11::dict backend)
      : op_(std::move(op)),
        backend_(backend.release()),
        auto_("auto"),
        must_choose_("must_choose") {
    for (ArgumentKind& each : arguments)
      arguments_.push_back({each.dims, kind_of(each), each.optional});
  }

  PyObject* operator()(PyObject* const* given, Py_ssize_t count) const {
    constexpr Py_ssize_t first = 2;  // after the backend and check
    const size_t all = op_.schema().arguments().size();
    TORCH_CHECK_TYPE(size_t(count) == first + all, op_.schema().name(), " takes ", first + all,
                     " arguments, got ", count);
    if (!asks_for_nothing_else(given[0], given[1])) return nullptr;
    torch::jit::Stack stack;
    stack.reserve(all);
    Sizes sizes;
    for (size_t i = 0; i < all; ++i) {
      PyObject* const each = given[first + Py_ssize_t(i)];
      if (i < arguments_.size() ? !take(arguments_[i], each, sizes, stack)
                                : !take_option(each, stack))
        return nullptr;
    }
    {
      const pybind11::gil_scoped_release no_gil;
      op_.callBoxed(stack);
    }
    return results(stack);
  }

 private:
  enum class Kind { state, data, scalar, per_step, mask };

  struct Argument {
    std::string dims;
    Kind kind;
    bool optional;
  };

  // Of the letters, once they are known; and what the first argument says of all.
  struct Sizes {
    int64_t B = -1, T = -1, K = -1, C = -1;
    at::Tensor first;

    int64_t& of(char letter) { return letter == 'T' ? T : letter == 'K' ? K : C; }
  };

  static Kind kind_of(const ArgumentKind& a) {
    return a.kind == "data"    ? Kind::data
           : a.is_scalar()     ? Kind::scalar
           : a.kind == "decay" ? Kind::per_step
           : a.kind == "mask"  ? Kind::mask
                               : Kind::state;
  }

  bool asks_for_nothing_else(PyObject* backend, PyObject* check) const {
    if (check != Py_False || !is_auto(backend)) return false;
    const PyObject* must = PyDict_GetItemWithError(backend_.ptr(), must_choose_.ptr());
    return must == Py_False && !at::impl::torch_function_mode_enabled() &&
           !c10::impl::TorchDispatchModeTLS::any_modes_set() && !inside_transform() &&
           !torch::jit::tracer::isTracing();
  }

  // Of torch.func, which has had no level in most threads.
  bool inside_transform() const {
    if (at::functorch::functorchTLSAccessor() == nullptr) return false;
    return transforms_active_().cast<bool>();
  }

  bool is_auto(PyObject* name) const {
    return name == auto_.ptr() ||
           (PyUnicode_CheckExact(name) && PyUnicode_Compare(name, auto_.ptr()) == 0);
  }

  // Whether PyTorch does no more with it than to look up its device.
  static bool is_plain(const at::Tensor& x) {
    constexpr c10::DispatchKeySet special(
        {c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
         c10::DispatchKey::Functionalize, c10::DispatchKey::Python});
    return !x.key_set().has_any(special) && x.layout() == at::kStrided && !x.is_nested() &&
           !x._fw_grad(/*level=*/0).defined();
  }

  static bool is_half(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

  // Puts an argument on the stack as the raw operator takes it, or gives false.
  bool take(const Argument& a, PyObject* given, Sizes& sizes, torch::jit::Stack& stack) const {
    if (given == Py_None) {
      stack.emplace_back();
      return a.optional;
    }
    if (a.kind == Kind::scalar && PyFloat_CheckExact(given)) {
      const double value = PyFloat_AS_DOUBLE(given);
      const bool single = sizes.first.scalar_type() == at::kFloat;
      const double held = single ? double(float(value)) : value;
      if (!(held > 0.0 && std::isfinite(held))) return false;  // Python has the words for it
      stack.emplace_back(filled(a, value, sizes));
      return true;
    }
    if (!THPVariable_CheckExact(given)) return false;
    const at::Tensor& x = THPVariable_Unpack(given);
    if (!is_plain(x)) return false;
    const at::ScalarType dtype = x.scalar_type();
    if (!sizes.first.defined()) {
      if (dtype != at::kFloat && dtype != at::kDouble) return false;
      sizes.first = x;
    } else if (x.device() != sizes.first.device()) {
      return false;
    }
    const at::ScalarType state = sizes.first.scalar_type();
    if (a.kind == Kind::mask ? dtype != at::kBool
                             : dtype != state && !(a.kind == Kind::data && is_half(dtype)))
      return false;
    if (a.kind == Kind::scalar && x.dim() == 0) {
      stack.emplace_back(x.expand(shape_of(a, sizes)));
      return true;
    }
    if (!agrees(a, x.sizes(), sizes)) return false;
    stack.emplace_back(x);
    return true;
  }

  static bool agrees(const Argument& a, at::IntArrayRef shape, Sizes& sizes) {
    if (shape.size() != 1 + a.dims.size()) return false;
    if (sizes.B < 0) sizes.B = shape[0];
    if (shape[0] != sizes.B) return false;
    for (size_t d = 0; d < a.dims.size(); ++d) {
      int64_t& size = sizes.of(a.dims[d]);
      if (size < 0) size = shape[d + 1];
      if (shape[d + 1] != size || (size == 0 && a.dims[d] != 'T')) return false;
    }
    return true;
  }

  static std::vector<int64_t> shape_of(const Argument& a, Sizes& sizes) {
    std::vector<int64_t> shape{sizes.B};
    for (const char letter : a.dims) shape.push_back(sizes.of(letter));
    return shape;
  }

  static at::Tensor filled(const Argument& a, double value, Sizes& sizes) {
    const std::vector<int64_t> shape = shape_of(a, sizes);
    if (!sizes.first.device().is_cpu()) {
      return at::full(shape, value, sizes.first.options().requires_grad(false));
    }
    const at::Tensor all = at::detail::empty_cpu(shape, sizes.first.scalar_type());
    if (all.scalar_type() == at::kFloat) {
      std::fill_n(all.mutable_data_ptr<float>(), all.numel(), float(value));
    } else {
      std::fill_n(all.mutable_data_ptr<double>(), all.numel(), value);
    }
    return all;
  }

  // What follows the declared arguments: a method, a number, or nothing.
  static bool take_option(PyObject* given, torch::jit::Stack& stack) {
    if (given == Py_None) {
      stack.emplace_back();
    } else if (PyLong_CheckExact(given)) {
      int overflow = 0;
      const long long number = PyLong_AsLongLongAndOverflow(given, &overflow);
      if (overflow != 0) return false;
      stack.emplace_back(int64_t(number));
    } else if (PyUnicode_CheckExact(given)) {
      Py_ssize_t length = 0;
      const char* text = PyUnicode_AsUTF8AndSize(given, &length);
      if (text == nullptr) throw python_error();
      stack.emplace_back(std::string(text, size_t(length)));
    } else {
      return false;
    }
    return true;
  }

  static PyObject* results(torch::jit::Stack& stack) {
    if (stack.size() == 1) return THPVariable_Wrap(std::move(stack[0]).toTensor());
    THPObjectPtr all(PyTuple_New(Py_ssize_t(stack.size())));
    if (!all) throw python_error();
    for (size_t i = 0; i < stack.size(); ++i)
      PyTuple_SET_ITEM(all.get(), Py_ssize_t(i), THPVariable_Wrap(std::move(stack[i]).toTensor()));
    return all.release();
  }

  const c10::OperatorHandle op_;
  std::vector<Argument> arguments_;
  const pybind11::handle backend_;  // the names of kanerva_ext._backend
  const pybind11::str auto_, must_choose_;
  const pybind11::object transforms_active_ =
      pybind11::module_::import("torch._C").attr("_are_functorch_transforms_active");
};

inline PyObject* run_direct_call(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const auto* call = static_cast<const DirectCall*>(PyCapsule_GetPointer(self, nullptr));
  if (call == nullptr) throw python_error();
  PyObject* const found = (*call)(given, count);
  if (found != nullptr) return found;
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// Of an operator, given its arguments and the names of kanerva_ext._backend; it stays for good.
inline pybind11::object direct_call(
    const std::string& library, const std::string& name,
    const std::vector<std::tuple<std::string, std::string, bool>>& arguments,
    pybind11::dict backend) {
  static PyMethodDef method = {
      "direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_direct_call)),
      METH_FASTCALL, nullptr};
  std::vector<ArgumentKind> kinds;
  for (const auto& [dims, kind, optional] : arguments) kinds.push_back({dims, kind, optional});
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow((library + "::" + name).c_str(), "");
  const pybind11::capsule call(new DirectCall(op, std::move(kinds), std::move(backend)));
  return pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&method, call.ptr()));
}

}  // namespace kanerva
