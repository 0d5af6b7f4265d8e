// The numerical core for NumPy, without torch, and information about the build.
//
// Arrays have exactly one batch dimension, float32 or float64; weights and values are converted to
// the dtype of the state. Forward only: gradients are PyTorch's business.
#include <kanerva_build_info.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/arguments.h"

namespace py = pybind11;

namespace kanerva {
namespace {

Dtype dtype_of(const py::array& a, const char* name) {
  if (py::isinstance<py::array_t<float>>(a)) return Dtype::float32;
  if (py::isinstance<py::array_t<double>>(a)) return Dtype::float64;
  throw py::type_error(std::string(name) + " must be a float32 or float64 array, got dtype " +
                       py::str(a.dtype()).cast<std::string>());
}

std::string text(const std::vector<int64_t>& shape) {
  std::string s = "(";
  for (const int64_t n : shape) s += std::to_string(n) + (shape.size() == 1 ? ",)" : ", ");
  return shape.size() == 1 ? s : s.substr(0, s.size() - 2) + ")";
}

// How a function is called, as fields() has it: the arguments that must be given, and the others by
// name alone.
struct Argument {
  enum { required, none, number, method } otherwise = required;
  const char* name = nullptr;
  int64_t number_otherwise = 0;
};

struct Signature {
  std::array<Argument, 16> arguments = {};
  size_t required = 0, count = 0;

  constexpr void add(Argument a) {
    required += a.otherwise == Argument::required;
    arguments[count++] = a;
  }
  constexpr void memory(View&, const char* name) { add({Argument::required, name}); }
  constexpr void steps(View&, const char* name, const char*) { add({Argument::required, name}); }
  constexpr void data(View&, const char* name, const char*) { add({Argument::required, name}); }
  constexpr void state(View&, const char* name, const char*) { add({Argument::required, name}); }
  constexpr void maybe(View&, const char* name, const char*) { add({Argument::none, name}); }
  constexpr void mask(View&) { add({Argument::none, "mask"}); }
  constexpr void number(int64_t& x, const char* name, int64_t) { add({Argument::number, name, x}); }
  constexpr void method(WriteMethod&) { add({Argument::method, "method"}); }
  constexpr void packing(Packing&) {}
  constexpr void check(bool, const char*) {}
  constexpr bool has(const View&) const { return false; }
  constexpr void result(View&, const char*) {}
};

template <class Args>
constexpr Signature signature_of() {
  Args args;
  Signature signature;
  args.fields(signature);
  return signature;
}

// The arrays of a call, which live as long as it runs. Shapes are words of the letters of Sizes.
class Call {
 public:
  explicit Call(std::initializer_list<py::object> given) : given_(given) {}

  Sizes n;

  void memory(View& v, const char* name) {
    const py::object& o = given_.at(next_);
    if (!py::isinstance<py::array>(o))
      fail(std::string(name) + " must be a float32 or float64 array, got " + type_name(o));
    const py::array a = py::cast<py::array>(o);
    state_ = dtype_of(a, name);
    if (a.ndim() != 3) throw py::value_error(std::string(name) + " must have shape (B, K, C)");
    n = {a.shape(0), 0, a.shape(1), a.shape(2)};
    state(v, name, "BKC");
  }
  void steps(View& v, const char* name, const char* letters) {
    const py::array a = converted(given_.at(next_++), name);
    if (a.ndim() != 3) throw py::value_error(std::string(name) + " must have three dimensions");
    n.T = a.shape(1);
    v = keep(a, name, letters);
  }
  void data(View& v, const char* name, const char* letters) { state(v, name, letters); }
  void state(View& v, const char* name, const char* letters) {
    v = keep(converted(given_.at(next_++), name), name, letters);
  }
  void maybe(View& v, const char* name, const char* letters) {
    if (given_.at(next_).is_none()) {
      ++next_;
    } else {
      state(v, name, letters);
    }
  }
  void mask(View& v) {
    const py::object& o = given_.at(next_++);
    if (o.is_none()) return;
    const py::array a = py::array_t<bool>::ensure(o);
    if (!a) fail("mask must be a bool array");
    v = keep(a, "mask", "BT");
  }
  void number(int64_t& x, const char* name, int64_t least) {
    x = cast<int64_t>(name, "an int");
    if (x < least) {
      throw py::value_error(std::string(name) + " must be at least " + std::to_string(least) +
                            ", got " + std::to_string(x));
    }
  }
  void method(WriteMethod& x) {
    const std::string name = cast<std::string>("method", "a str");
    if (!find_method(name, x)) throw py::value_error(kMethods + name);
  }
  static void packing(Packing&) {}
  static void check(bool good, const char* message) {
    if (!good) throw py::value_error(message);
  }
  static bool has(const View& v) { return bool(v); }

  void result(View& v, const char* letters) {
    const std::vector<int64_t> shape = sizes(letters);
    const std::vector<py::ssize_t> sizes(shape.begin(), shape.end());
    const py::array a = state_ == Dtype::float32 ? py::array(py::array_t<float>(sizes))
                                                 : py::array(py::array_t<double>(sizes));
    results_.append(a);
    v = view(a);
  }

  // The results in their order, or the only one.
  template <class Args>
  py::object run(void (*kernel)(const Args&, const Executor&), const Args& args) const {
    {
      py::gil_scoped_release release;
      kernel(args, serial_executor());
    }
    return results_.size() == 1 ? py::object(results_[0]) : py::tuple(results_);
  }

 private:
  [[noreturn]] static void fail(const std::string& message) {
    PyErr_Clear();
    throw py::type_error(message);
  }

  static std::string type_name(const py::object& o) {
    return py::str(py::type::of(o).attr("__name__")).cast<std::string>();
  }

  template <class T>
  T cast(const char* name, const char* expected) {
    const py::object& o = given_.at(next_++);
    try {
      return o.cast<T>();
    } catch (const py::cast_error&) {
      fail(std::string(name) + " must be " + expected + ", got " + type_name(o));
    }
  }

  // Of the dtype of the state.
  py::array converted(const py::object& o, const char* name) const {
    const py::array a = o.is_none()                ? py::array()
                        : state_ == Dtype::float32 ? py::array(py::array_t<float>::ensure(o))
                                                   : py::array(py::array_t<double>::ensure(o));
    if (o.is_none() || !a) {
      fail(std::string(name) + " must be convertible to a floating-point array, got " +
           type_name(o));
    }
    return a;
  }

  std::vector<int64_t> sizes(const char* letters) const {
    std::vector<int64_t> shape;
    for (; *letters != '\0'; ++letters)
      shape.push_back(*letters == 'B' || *letters == 'R' ? n.B
                      : *letters == 'T'                  ? n.T
                      : *letters == 'K'                  ? n.K
                                                         : n.C);
    return shape;
  }

  View view(const py::array& a) const {
    View v;
    v.data = const_cast<void*>(a.data());
    v.dtype = state_;
    for (int64_t d = 0; d < a.ndim(); ++d) v.stride[d] = a.strides(d) / a.itemsize();
    return v;
  }

  View keep(const py::array& a, const char* name, const char* letters) {
    const std::vector<int64_t> shape = sizes(letters);
    if (!std::equal(shape.begin(), shape.end(), a.shape(), a.shape() + a.ndim())) {
      throw py::value_error(std::string(name) + " must have shape " + text(shape) + ", got " +
                            py::str(a.attr("shape")).cast<std::string>());
    }
    kept_.append(a);
    return view(a);
  }

  const std::vector<py::object> given_;
  size_t next_ = 0;
  Dtype state_ = Dtype::float64;
  py::list kept_, results_;
};

template <size_t>
using Object = const py::object&;

py::arg_v left_out(const Argument& a) {
  if (a.otherwise == Argument::number) return {a.name, a.number_otherwise};
  if (a.otherwise == Argument::method) return {a.name, "auto"};
  return {a.name, py::none()};
}

template <class Args, size_t... Required, size_t... Optional>
void define(py::module_& m, const char* name, void (*kernel)(const Args&, const Executor&),
            const char* text, std::index_sequence<Required...>, std::index_sequence<Optional...>) {
  constexpr Signature signature = signature_of<Args>();
  const auto function = [kernel](Object<Required>... first, Object<Optional>... rest) {
    Call call({first..., rest...});
    Args args;
    args.fields(call);
    args.n = call.n;
    return call.run(kernel, args);
  };
  m.def(name, function, py::arg(signature.arguments[Required].name)..., py::kw_only(),
        left_out(signature.arguments[sizeof...(Required) + Optional])..., text);
}

// Makes a function of an operator.
template <class Args>
void define(py::module_& m, const char* name, void (*kernel)(const Args&, const Executor&),
            const char* text) {
  constexpr Signature signature = signature_of<Args>();
  define(m, name, kernel, text, std::make_index_sequence<signature.required>(),
         std::make_index_sequence<signature.count - signature.required>());
}

template <class Args, class = void>
struct HasText : std::false_type {};
template <class Args>
struct HasText<Args, std::void_t<decltype(Args::kText)>> : std::true_type {};

// The same of an operator that says what it gives; of another, such as a gradient, nothing.
template <class Args>
void define_if_told(py::module_& m, const char* name,
                    void (*kernel)(const Args&, const Executor&)) {
  if constexpr (HasText<Args>::value) define(m, name, kernel, Args::kText);
}

}  // namespace
}  // namespace kanerva

PYBIND11_MODULE(_core, m) {
  using kanerva::simd_level;
  m.doc() = "Torch-free numerical core of kanerva_ext for NumPy arrays, and build information.";
  m.def(
      "build_info",
      [] { return py::module_::import("json").attr("loads")(KANERVA_BUILD_INFO_JSON); },
      "How this copy was built: a dictionary.");
  m.def(
      "simd_level", [] { return std::string(simd_level()); },
      "Instruction set in use: 'avx512', 'avx2' or 'baseline'.");
  const kanerva::Kernels& with = kanerva::kernels();
#define KANERVA_DEFINE(op, Args) kanerva::define_if_told<kanerva::Args>(m, #op, with.op);
  KANERVA_OPERATORS(KANERVA_DEFINE)
#undef KANERVA_DEFINE
}
