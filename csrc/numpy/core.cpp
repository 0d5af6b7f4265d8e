// The numerical core for NumPy, without torch, and information about the build.
//
// Arrays have exactly one batch dimension, float32 or float64; weights and values are converted to
// the dtype of the state. Forward only: gradients are PyTorch's business.
#include <kanerva_build_info.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <optional>
#include <string>

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

std::string text(std::initializer_list<int64_t> shape) {
  std::string s = "(";
  for (const int64_t n : shape) s += std::to_string(n) + (shape.size() == 1 ? ",)" : ", ");
  return shape.size() == 1 ? s : s.substr(0, s.size() - 2) + ")";
}

void check_shape(const py::array& a, const char* name, std::initializer_list<int64_t> shape) {
  bool same = a.ndim() == int64_t(shape.size());
  int64_t d = 0;
  for (const int64_t n : shape) same = same && a.shape(d++) == n;
  if (!same) {
    throw py::value_error(std::string(name) + " must have shape " + text(shape) + ", got " +
                          py::str(a.attr("shape")).cast<std::string>());
  }
}

// An argument: converted to the dtype of the state where necessary, and kept alive.
struct Input {
  py::array array;
  View view;
};

Input input(const py::object& o, const char* name, std::initializer_list<int64_t> shape,
            Dtype state) {
  Input in;
  in.array = state == Dtype::float32 ? py::array(py::array_t<float>::ensure(o))
                                     : py::array(py::array_t<double>::ensure(o));
  if (!in.array) {
    PyErr_Clear();
    throw py::type_error(std::string(name) + " must be convertible to a floating-point array");
  }
  check_shape(in.array, name, shape);
  in.view.data = const_cast<void*>(in.array.data());
  in.view.dtype = state;
  for (int64_t d = 0; d < in.array.ndim(); ++d)
    in.view.stride[d] = in.array.strides(d) / in.array.itemsize();
  return in;
}

struct Output {
  py::array array;
  View view;
};

Output output(std::initializer_list<int64_t> shape, Dtype state) {
  Output out;
  std::vector<py::ssize_t> sizes(shape.begin(), shape.end());
  out.array = state == Dtype::float32 ? py::array(py::array_t<float>(sizes))
                                      : py::array(py::array_t<double>(sizes));
  out.view.data = out.array.mutable_data();
  out.view.dtype = state;
  for (int64_t d = 0; d < out.array.ndim(); ++d)
    out.view.stride[d] = out.array.strides(d) / out.array.itemsize();
  return out;
}

Sizes sizes(const py::array& mean, const py::array* steps, const char* steps_name) {
  if (mean.ndim() != 3) throw py::value_error("mean must have shape (B, K, C)");
  if (steps != nullptr && steps->ndim() != 3) {
    throw py::value_error(std::string(steps_name) + " must have three dimensions");
  }
  return {mean.shape(0), steps != nullptr ? steps->shape(1) : 0, mean.shape(1), mean.shape(2)};
}

WriteMethod write_method(const std::string& name) {
  if (name == "auto") return WriteMethod::automatic;
  if (name == "chunk") return WriteMethod::chunk;
  if (name == "information") return WriteMethod::information;
  if (name == "sqrt") return WriteMethod::sqrt;
  throw py::value_error("method must be auto, chunk, information or sqrt, got " + name);
}

// The mask, if there is one, kept alive by what is returned.
py::array_t<bool> mask_input(const py::object& mask, View& view, int64_t B, int64_t T) {
  if (mask.is_none()) return {};
  py::array_t<bool> kept = py::array_t<bool>::ensure(mask);
  if (!kept) throw py::type_error("mask must be a bool array");
  check_shape(kept, "mask", {B, T});
  view.data = const_cast<bool*>(kept.data());
  for (int64_t d = 0; d < 2; ++d) view.stride[d] = kept.strides(d);
  return kept;
}

py::tuple bayes_write(const py::array& mean, const py::object& cov, const py::array& weights,
                      const py::object& values, const py::object& noise_var, const py::object& mask,
                      const py::object& decay, const std::string& method) {
  BayesWriteArgs args;
  args.n = sizes(mean, &weights, "weights");
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(cov, "cov", {B, K, K}, s),
                      input(weights, "weights", {B, T, K}, s),
                      input(values, "values", {B, T, C}, s),
                      input(noise_var, "noise_var", {B, T}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  args.weights = in[2].view;
  args.values = in[3].view;
  args.noise_var = in[4].view;
  const py::array_t<bool> kept = mask_input(mask, args.mask, B, T);
  Input forgetting;
  if (!decay.is_none()) {
    if (method == "information") throw py::value_error("method information does not take decay");
    forgetting = input(decay, "decay", {B, T}, s);
    args.decay = forgetting.view;
  }
  args.method = write_method(method);
  const Output out[] = {output({B, K, C}, s), output({B, K, K}, s), output({B}, s)};
  args.mean_out = out[0].view;
  args.cov_out = out[1].view;
  args.log_evidence = out[2].view;
  {
    py::gil_scoped_release release;
    kernels().bayes_write(args, serial_executor());
  }
  return py::make_tuple(out[0].array, out[1].array, out[2].array);
}

py::array solve_addresses(const py::array& mean, const py::array& queries,
                          const py::object& ridge) {
  SolveAddressesArgs args;
  args.n = sizes(mean, &queries, "queries");
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(queries, "queries", {B, T, C}, s),
                      input(ridge, "ridge", {B}, s)};
  args.mean = in[0].view;
  args.queries = in[1].view;
  args.ridge = in[2].view;
  const Output out = output({B, T, K}, s);
  args.weights_out = out.view;
  py::gil_scoped_release release;
  kernels().solve_addresses(args, serial_executor());
  return out.array;
}

py::tuple read(const py::array& mean, const py::object& cov, const py::array& weights) {
  ReadArgs args;
  args.n = sizes(mean, &weights, "weights");
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(cov, "cov", {B, K, K}, s),
                      input(weights, "weights", {B, T, K}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  args.weights = in[2].view;
  const Output out[] = {output({B, T, C}, s), output({B, T}, s)};
  args.values_out = out[0].view;
  args.var_out = out[1].view;
  {
    py::gil_scoped_release release;
    kernels().read(args, serial_executor());
  }
  return py::make_tuple(out[0].array, out[1].array);
}

py::tuple recall(const py::array& mean, const py::object& cov, const py::array& queries,
                 const py::object& ridge) {
  RecallArgs args;
  args.n = sizes(mean, &queries, "queries");
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(cov, "cov", {B, K, K}, s),
                      input(queries, "queries", {B, T, C}, s), input(ridge, "ridge", {B}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  args.queries = in[2].view;
  args.ridge = in[3].view;
  const Output out[] = {output({B, T, C}, s), output({B, T}, s), output({B, T, K}, s)};
  args.values_out = out[0].view;
  args.var_out = out[1].view;
  args.weights_out = out[2].view;
  {
    py::gil_scoped_release release;
    kernels().recall(args, serial_executor());
  }
  return py::make_tuple(out[0].array, out[1].array, out[2].array);
}

py::array memory_kl(const py::array& mean, const py::object& cov, const py::object& prior_mean,
                    const py::object& prior_cov) {
  MemoryKlArgs args;
  args.n = sizes(mean, nullptr, "");
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(cov, "cov", {B, K, K}, s),
                      input(prior_mean, "prior_mean", {B, K, C}, s),
                      input(prior_cov, "prior_cov", {B, K, K}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  args.prior_mean = in[2].view;
  args.prior_cov = in[3].view;
  const Output out = output({B}, s);
  args.kl_out = out.view;
  py::gil_scoped_release release;
  kernels().memory_kl(args, serial_executor());
  return out.array;
}

py::tuple statistics(const py::array& mean, const py::object& cov) {
  StatisticsArgs args;
  args.n = sizes(mean, nullptr, "");
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(cov, "cov", {B, K, K}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  const Output out[] = {output({B, K, C}, s), output({B, K, K}, s)};
  args.shift_out = out[0].view;
  args.precision_out = out[1].view;
  {
    py::gil_scoped_release release;
    kernels().statistics(args, serial_executor());
  }
  return py::make_tuple(out[0].array, out[1].array);
}

py::tuple adaptive_write(const py::array& mean, const py::object& cov, const py::array& values,
                         const py::object& noise_var, const py::object& ridge, int64_t num_iters,
                         const py::object& mask) {
  if (num_iters < 1) throw py::value_error("num_iters must be at least 1");
  AdaptiveWriteArgs args;
  args.n = sizes(mean, &values, "values");
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(cov, "cov", {B, K, K}, s),
                      input(values, "values", {B, T, C}, s),
                      input(noise_var, "noise_var", {B, T}, s), input(ridge, "ridge", {B}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  args.values = in[2].view;
  args.noise_var = in[3].view;
  args.ridge = in[4].view;
  args.num_iters = num_iters;
  const py::array_t<bool> kept = mask_input(mask, args.mask, B, T);
  const Output out[] = {output({B, K, C}, s), output({B, K, K}, s), output({B, T, K}, s),
                        output({B, T}, s), output({B}, s)};
  args.mean_out = out[0].view;
  args.cov_out = out[1].view;
  args.weights_out = out[2].view;
  args.step_kl = out[3].view;
  args.log_evidence = out[4].view;
  {
    py::gil_scoped_release release;
    kernels().adaptive_write(args, serial_executor());
  }
  return py::make_tuple(out[0].array, out[1].array, out[2].array, out[3].array, out[4].array);
}

py::tuple forget(const py::array& mean, const py::object& cov, const py::array& weights,
                 const py::object& values, const py::object& noise_var, const py::object& mask) {
  ForgetArgs args;
  args.n = sizes(mean, &weights, "weights");
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {input(mean, "mean", {B, K, C}, s), input(cov, "cov", {B, K, K}, s),
                      input(weights, "weights", {B, T, K}, s),
                      input(values, "values", {B, T, C}, s),
                      input(noise_var, "noise_var", {B, T}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  args.weights = in[2].view;
  args.values = in[3].view;
  args.noise_var = in[4].view;
  const py::array_t<bool> kept = mask_input(mask, args.mask, B, T);
  const Output out[] = {output({B, K, C}, s), output({B, K, K}, s)};
  args.mean_out = out[0].view;
  args.cov_out = out[1].view;
  {
    py::gil_scoped_release release;
    kernels().forget(args, serial_executor());
  }
  return py::make_tuple(out[0].array, out[1].array);
}

py::tuple causal_scan(const py::array& mean, const py::object& cov, const py::array& weights,
                      const py::object& values, const py::object& queries,
                      const py::object& noise_var, const py::object& mask, const py::object& decay,
                      int64_t chunk_size) {
  if (chunk_size < 0) throw py::value_error("chunk_size must not be negative");
  CausalScanArgs args;
  args.n = sizes(mean, &weights, "weights");
  args.chunk_size = chunk_size;
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype s = dtype_of(mean, "mean");
  const Input in[] = {
      input(mean, "mean", {B, K, C}, s),       input(cov, "cov", {B, K, K}, s),
      input(weights, "weights", {B, T, K}, s), input(values, "values", {B, T, C}, s),
      input(queries, "queries", {B, T, K}, s), input(noise_var, "noise_var", {B, T}, s)};
  args.mean = in[0].view;
  args.cov = in[1].view;
  args.weights = in[2].view;
  args.values = in[3].view;
  args.queries = in[4].view;
  args.noise_var = in[5].view;
  const py::array_t<bool> kept = mask_input(mask, args.mask, B, T);
  Input forgetting;
  if (!decay.is_none()) {
    forgetting = input(decay, "decay", {B, T}, s);
    args.decay = forgetting.view;
  }
  const Output out[] = {output({B, T, C}, s), output({B, T}, s), output({B, K, C}, s),
                        output({B, K, K}, s), output({B}, s)};
  args.reads_out = out[0].view;
  args.read_var_out = out[1].view;
  args.mean_out = out[2].view;
  args.cov_out = out[3].view;
  args.log_evidence = out[4].view;
  {
    py::gil_scoped_release release;
    kernels().causal_scan(args, serial_executor());
  }
  return py::make_tuple(out[0].array, out[1].array, out[2].array, out[3].array, out[4].array);
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
        py::arg("decay") = py::none(), py::arg("method") = "auto",
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
        py::arg("mask") = py::none(), py::arg("decay") = py::none(), py::arg("chunk_size") = 0,
        "A write with a read after every step: (reads, read_var, mean, cov, log_evidence).");
  m.def("statistics", &kanerva::statistics, py::arg("mean"), py::arg("cov"),
        "(cov^-1 mean, cov^-1), its own inverse.");
}
