// The numerical core for NumPy, without torch, and information about the build.
//
// Arrays have exactly one batch dimension, float32 or float64; weights and values are converted to
// the dtype of the state. Forward only: gradients are PyTorch's business.
#include <kanerva_build_info.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
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

WriteMethod write_method(const std::string& name) {
  if (name == "auto") return WriteMethod::automatic;
  if (name == "chunk") return WriteMethod::chunk;
  if (name == "information") return WriteMethod::information;
  if (name == "sqrt") return WriteMethod::sqrt;
  throw py::value_error("method must be auto, chunk, information or sqrt, got " + name);
}

// The arrays of a call, which live as long as it runs. Shapes are words of the letters of Sizes.
class Call {
 public:
  // `steps`: the argument that has them, if any.
  explicit Call(const py::array& mean, const py::array* steps = nullptr, const char* name = "")
      : state_(dtype_of(mean, "mean")) {
    if (mean.ndim() != 3) throw py::value_error("mean must have shape (B, K, C)");
    if (steps != nullptr && steps->ndim() != 3)
      throw py::value_error(std::string(name) + " must have three dimensions");
    n = {mean.shape(0), steps != nullptr ? steps->shape(1) : 0, mean.shape(1), mean.shape(2)};
  }

  Sizes n;

  // An argument, converted to the dtype of the state where necessary; None is absent.
  View in(const py::object& o, const char* name, const char* letters) {
    if (o.is_none()) return {};
    const py::array a = state_ == Dtype::float32 ? py::array(py::array_t<float>::ensure(o))
                                                 : py::array(py::array_t<double>::ensure(o));
    if (!a) fail(std::string(name) + " must be convertible to a floating-point array");
    return keep(a, name, letters);
  }

  View mask(const py::object& o) {
    if (o.is_none()) return {};
    const py::array a = py::array_t<bool>::ensure(o);
    if (!a) fail("mask must be a bool array");
    return keep(a, "mask", "BT");
  }

  View out(const char* letters) {
    const std::vector<int64_t> shape = sizes(letters);
    const std::vector<py::ssize_t> sizes(shape.begin(), shape.end());
    const py::array a = state_ == Dtype::float32 ? py::array(py::array_t<float>(sizes))
                                                 : py::array(py::array_t<double>(sizes));
    results_.append(a);
    return view(a);
  }

  // The results, in the order of out().
  template <class Args>
  py::tuple run(void (*kernel)(const Args&, const Executor&), const Args& args) const {
    {
      py::gil_scoped_release release;
      kernel(args, serial_executor());
    }
    return py::tuple(results_);
  }

 private:
  [[noreturn]] static void fail(const std::string& message) {
    PyErr_Clear();
    throw py::type_error(message);
  }

  std::vector<int64_t> sizes(const char* letters) const {
    std::vector<int64_t> shape;
    for (; *letters != '\0'; ++letters)
      shape.push_back(*letters == 'B' ? n.B : *letters == 'T' ? n.T : *letters == 'K' ? n.K : n.C);
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

  const Dtype state_;
  py::list kept_, results_;
};

void write_inputs(Call& call, WriteInputs& args, const py::array& mean, const py::object& cov,
                  const py::array& weights, const py::object& values, const py::object& noise_var,
                  const py::object& mask, const py::object& decay,
                  const py::object& retention = py::none(),
                  const py::object& stationary_cov = py::none()) {
  args.n = call.n;
  args.mean = call.in(mean, "mean", "BKC");
  args.cov = call.in(cov, "cov", "BKK");
  args.weights = call.in(weights, "weights", "BTK");
  args.values = call.in(values, "values", "BTC");
  args.noise_var = call.in(noise_var, "noise_var", "BT");
  args.mask = call.mask(mask);
  args.decay = call.in(decay, "decay", "BT");
  args.retention = call.in(retention, "retention", "BT");
  args.stationary_cov = call.in(stationary_cov, "stationary_cov", "BKK");
  if (args.decay && args.retention)
    throw py::value_error("decay and retention exclude each other: give one");
  if (args.stationary_cov && !args.retention)
    throw py::value_error("stationary_cov needs a retention");
}

void solve_inputs(Call& call, SolveInputs& args, const py::array& mean, const py::array& queries,
                  const py::object& ridge) {
  args.n = call.n;
  args.mean = call.in(mean, "mean", "BKC");
  args.queries = call.in(queries, "queries", "BTC");
  args.ridge = call.in(ridge, "ridge", "B");
}

py::tuple bayes_write(const py::array& mean, const py::object& cov, const py::array& weights,
                      const py::object& values, const py::object& noise_var, const py::object& mask,
                      const py::object& decay, const py::object& retention,
                      const py::object& stationary_cov, const std::string& method) {
  Call call(mean, &weights, "weights");
  BayesWriteArgs args;
  write_inputs(call, args, mean, cov, weights, values, noise_var, mask, decay, retention,
               stationary_cov);
  args.method = write_method(method);
  if (args.decay && args.method == WriteMethod::information)
    throw py::value_error("method information does not take decay");
  if (args.retention && args.method == WriteMethod::information)
    throw py::value_error("method information does not take retention");
  args.mean_out = call.out("BKC");
  args.cov_out = call.out("BKK");
  args.log_evidence = call.out("B");
  return call.run(kernels().bayes_write, args);
}

py::object solve_addresses(const py::array& mean, const py::array& queries,
                           const py::object& ridge) {
  Call call(mean, &queries, "queries");
  SolveAddressesArgs args;
  solve_inputs(call, args, mean, queries, ridge);
  args.weights_out = call.out("BTK");
  return call.run(kernels().solve_addresses, args)[0];
}

py::tuple read(const py::array& mean, const py::object& cov, const py::array& weights) {
  Call call(mean, &weights, "weights");
  ReadArgs args;
  args.n = call.n;
  args.mean = call.in(mean, "mean", "BKC");
  args.cov = call.in(cov, "cov", "BKK");
  args.weights = call.in(weights, "weights", "BTK");
  args.values_out = call.out("BTC");
  args.var_out = call.out("BT");
  return call.run(kernels().read, args);
}

py::tuple recall(const py::array& mean, const py::object& cov, const py::array& queries,
                 const py::object& ridge) {
  Call call(mean, &queries, "queries");
  RecallArgs args;
  solve_inputs(call, args, mean, queries, ridge);
  args.cov = call.in(cov, "cov", "BKK");
  args.values_out = call.out("BTC");
  args.var_out = call.out("BT");
  args.weights_out = call.out("BTK");
  return call.run(kernels().recall, args);
}

py::object memory_kl(const py::array& mean, const py::object& cov, const py::object& prior_mean,
                     const py::object& prior_cov) {
  Call call(mean);
  MemoryKlArgs args;
  args.n = call.n;
  args.mean = call.in(mean, "mean", "BKC");
  args.cov = call.in(cov, "cov", "BKK");
  args.prior_mean = call.in(prior_mean, "prior_mean", "BKC");
  args.prior_cov = call.in(prior_cov, "prior_cov", "BKK");
  args.kl_out = call.out("B");
  return call.run(kernels().memory_kl, args)[0];
}

py::tuple statistics(const py::array& mean, const py::object& cov) {
  Call call(mean);
  StatisticsArgs args;
  args.n = call.n;
  args.mean = call.in(mean, "mean", "BKC");
  args.cov = call.in(cov, "cov", "BKK");
  args.shift_out = call.out("BKC");
  args.precision_out = call.out("BKK");
  return call.run(kernels().statistics, args);
}

py::tuple adaptive_write(const py::array& mean, const py::object& cov, const py::array& values,
                         const py::object& noise_var, const py::object& ridge, int64_t num_iters,
                         const py::object& mask) {
  if (num_iters < 1) throw py::value_error("num_iters must be at least 1");
  Call call(mean, &values, "values");
  AdaptiveWriteArgs args;
  args.n = call.n;
  args.mean = call.in(mean, "mean", "BKC");
  args.cov = call.in(cov, "cov", "BKK");
  args.values = call.in(values, "values", "BTC");
  args.noise_var = call.in(noise_var, "noise_var", "BT");
  args.ridge = call.in(ridge, "ridge", "B");
  args.num_iters = num_iters;
  args.mask = call.mask(mask);
  args.mean_out = call.out("BKC");
  args.cov_out = call.out("BKK");
  args.weights_out = call.out("BTK");
  args.step_kl = call.out("BT");
  args.log_evidence = call.out("B");
  return call.run(kernels().adaptive_write, args);
}

py::tuple forget(const py::array& mean, const py::object& cov, const py::array& weights,
                 const py::object& values, const py::object& noise_var, const py::object& mask) {
  Call call(mean, &weights, "weights");
  ForgetArgs args;
  write_inputs(call, args, mean, cov, weights, values, noise_var, mask, py::none());
  args.mean_out = call.out("BKC");
  args.cov_out = call.out("BKK");
  return call.run(kernels().forget, args);
}

py::tuple causal_scan(const py::array& mean, const py::object& cov, const py::array& weights,
                      const py::object& values, const py::object& queries,
                      const py::object& noise_var, const py::object& mask, const py::object& decay,
                      const py::object& retention, const py::object& stationary_cov,
                      int64_t chunk_size) {
  if (chunk_size < 0) throw py::value_error("chunk_size must not be negative");
  Call call(mean, &weights, "weights");
  CausalScanArgs args;
  write_inputs(call, args, mean, cov, weights, values, noise_var, mask, decay, retention,
               stationary_cov);
  args.queries = call.in(queries, "queries", "BTK");
  args.chunk_size = chunk_size;
  args.reads_out = call.out("BTC");
  args.read_var_out = call.out("BT");
  args.mean_out = call.out("BKC");
  args.cov_out = call.out("BKK");
  args.log_evidence = call.out("B");
  return call.run(kernels().causal_scan, args);
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
  m.def("bayes_write", &kanerva::bayes_write, py::arg("mean"), py::arg("cov"), py::arg("weights"),
        py::arg("values"), py::arg("noise_var"), py::kw_only(), py::arg("mask") = py::none(),
        py::arg("decay") = py::none(), py::arg("retention") = py::none(),
        py::arg("stationary_cov") = py::none(), py::arg("method") = "auto",
        "Exact posterior of an episode: (mean, cov, log_evidence).");
  m.def("solve_addresses", &kanerva::solve_addresses, py::arg("mean"), py::arg("queries"),
        py::arg("ridge"), "Least-squares addresses (B, T, K).");
  m.def("read", &kanerva::read, py::arg("mean"), py::arg("cov"), py::arg("weights"),
        "Read-out: (values, var).");
  m.def("recall", &kanerva::recall, py::arg("mean"), py::arg("cov"), py::arg("queries"),
        py::arg("ridge"), "Solve and read: (values, var, weights).");
  m.def("memory_kl", &kanerva::memory_kl, py::arg("mean"), py::arg("cov"), py::arg("prior_mean"),
        py::arg("prior_cov"), "KL between beliefs in nats (B,).");
  m.def("adaptive_write", &kanerva::adaptive_write, py::arg("mean"), py::arg("cov"),
        py::arg("values"), py::arg("noise_var"), py::arg("ridge"), py::kw_only(),
        py::arg("num_iters") = 1, py::arg("mask") = py::none(),
        "The Dynamic Kanerva write: (mean, cov, weights, step_kl, log_evidence).");
  m.def("forget", &kanerva::forget, py::arg("mean"), py::arg("cov"), py::arg("weights"),
        py::arg("values"), py::arg("noise_var"), py::kw_only(), py::arg("mask") = py::none(),
        "Exact removal of written items: (mean, cov).");
  m.def("causal_scan", &kanerva::causal_scan, py::arg("mean"), py::arg("cov"), py::arg("weights"),
        py::arg("values"), py::arg("queries"), py::arg("noise_var"), py::kw_only(),
        py::arg("mask") = py::none(), py::arg("decay") = py::none(),
        py::arg("retention") = py::none(), py::arg("stationary_cov") = py::none(),
        py::arg("chunk_size") = 0,
        "A write with a read after every step: (reads, read_var, mean, cov, log_evidence).");
  m.def("statistics", &kanerva::statistics, py::arg("mean"), py::arg("cov"),
        "(cov^-1 mean, cov^-1), its own inverse.");
}
