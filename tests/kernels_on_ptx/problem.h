// What a kernel is given in the PTX interpreter: buffers of exactly their size.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "../../csrc/common/arguments.h"

namespace kanerva {

inline uint64_t state = 88172645463325252ull;

inline double uniform() {  // in (-1, 1)
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return double(int64_t(state)) / 9223372036854775808.0;
}

inline const bool short_results = std::getenv("KANERVA_SHORT_RESULTS") != nullptr;

// Buffers of exactly their size, so that an overrun shows; results start as NaN.
struct Problem {
  Dtype dtype;
  Sizes n;
  std::vector<std::unique_ptr<char[]>> buffers;
  std::vector<std::pair<char*, size_t>> results;
  std::vector<std::pair<char*, std::vector<char>>> states = {};  // results in place of an input

  View make(int64_t rows, int64_t columns, bool is_result, double shift = 0.0, double scale = 1.0) {
    const bool wide = dtype == Dtype::float64;
    const int64_t count = n.B * rows * columns - (is_result && short_results);
    const int64_t bytes = count * (wide ? 8 : 4);
    buffers.emplace_back(new char[size_t(bytes)]);
    char* data = buffers.back().get();
    for (int64_t i = 0; i < count; ++i) {
      const double x = is_result ? NAN : shift + scale * uniform();
      const float narrow = float(x);
      if (wide) {
        std::memcpy(data + 8 * i, &x, 8);
      } else {
        std::memcpy(data + 4 * i, &narrow, 4);
      }
    }
    if (is_result) results.emplace_back(data, size_t(bytes));
    View v;
    v.data = data;
    v.dtype = dtype;
    v.stride[0] = rows * columns;
    v.stride[1] = columns;
    v.stride[2] = 1;
    return v;
  }
  View input(int64_t rows, int64_t columns, double shift = 0.0, double scale = 1.0) {
    return make(rows, columns, false, shift, scale);
  }
  View result(int64_t rows, int64_t columns) { return make(rows, columns, true); }

  // Makes an input a result as well, which starts as it is now.
  void in_place(const View& v, int64_t rows, int64_t columns) {
    char* data = static_cast<char*>(v.data);
    const size_t bytes = size_t(n.B * rows * columns) * (dtype == Dtype::float64 ? 8 : 4);
    states.emplace_back(data, std::vector<char>(data, data + bytes));
    results.emplace_back(data, bytes);
  }

  // Puts all results to where they start: NaN, or the input that they replace.
  void restart() {
    for (auto& [data, bytes] : results) std::memset(data, 0xff, bytes);
    for (auto& [data, bytes] : states) std::copy(bytes.begin(), bytes.end(), data);
  }

  std::vector<std::vector<char>> copies() const {
    std::vector<std::vector<char>> all;
    for (const auto& [data, bytes] : results) all.emplace_back(data, data + bytes);
    return all;
  }

  // I + scale * something symmetric, positive definite.
  View covariance() {
    View v = input(n.K, n.K, 0.0, 0.3 / double(n.K));
    for (int64_t b = 0; b < n.B; ++b)
      for (int64_t i = 0; i < n.K; ++i)
        for (int64_t j = 0; j <= i; ++j) {
          const int64_t at = b * n.K * n.K;
          if (dtype == Dtype::float64) {
            double* x = static_cast<double*>(v.data) + at;
            x[i * n.K + j] = i == j ? 1.0 : x[j * n.K + i];
          } else {
            float* x = static_cast<float*>(v.data) + at;
            x[i * n.K + j] = i == j ? 1.0f : x[j * n.K + i];
          }
        }
    return v;
  }

  // Of which a third is false.
  View mask() {
    buffers.emplace_back(new char[size_t(n.B * n.T + 1)]);
    bool* data = reinterpret_cast<bool*>(buffers.back().get());
    for (int64_t i = 0; i < n.B * n.T; ++i) data[i] = uniform() > -0.3;
    View v;
    v.data = data;
    v.stride[0] = n.T;
    v.stride[1] = 1;
    return v;
  }

  double number(const char* data) const {
    double x;
    float narrow;
    std::memcpy(dtype == Dtype::float64 ? static_cast<void*>(&x) : &narrow, data,
                dtype == Dtype::float64 ? 8 : 4);
    return dtype == Dtype::float64 ? x : double(narrow);
  }
  double number(const std::vector<char>& data) const { return number(data.data()); }

  bool finite() const {
    for (const auto& [data, bytes] : results)
      for (size_t i = 0; i < bytes; i += dtype == Dtype::float64 ? 8 : 4)
        if (!std::isfinite(number(data + i))) return false;
    return true;
  }
};

// Gives the fields of any arguments what every call has: no optional inputs but gradients and
// masks.
class Filler {
 public:
  explicit Filler(Problem& p) : p_(p) {}

  void memory(View& v, const char* name) { state(v, name, "BKC"); }
  void steps(View& v, const char* name, const char* shape) { state(v, name, shape); }
  void data(View& v, const char* name, const char* shape) { state(v, name, shape); }
  // Variances, of which there is one for a step or a memory, are positive, addresses small.
  void state(View& v, const char* name, const char* shape) {
    const auto [rows, columns] = sizes(shape);
    if (is_gradient(name)) {
      v = p_.input(rows, columns);
    } else if (shape[1] == 'K' && shape[2] == 'K') {
      v = p_.covariance();
    } else if (columns == 1 && shape[1] != 'K') {
      v = p_.input(rows, columns, 1.0, 0.5);
    } else {
      v = p_.input(rows, columns, 0.0,
                   shape[1] == 'T' ? 0.5 / std::sqrt(double(rows * columns)) : 1.0);
    }
  }
  void maybe(View& v, const char* name, const char* shape) {
    if (is_gradient(name)) state(v, name, shape);
  }
  void mask(View& v) { v = p_.mask(); }
  void result(View& v, const char* shape) {
    const auto [rows, columns] = sizes(shape);
    v = p_.result(rows, columns);
  }
  void result(View& v, const char* shape, const View&) { result(v, shape); }
  void result_of(const View& given, View& v, const char* shape) {
    if (given) result(v, shape);
  }
  static bool has(const View& v) { return bool(v); }
  static void number(int64_t&, const char*, int64_t) {}
  static void method(WriteMethod&) {}
  static void packing(Packing&) {}
  static void unread(const char*) {}
  static void check(bool, const char*) {}

 private:
  static bool is_gradient(const char* name) { return std::strncmp(name, "grad", 4) == 0; }

  // Rows and columns of a memory's share of a shape, such as BTK.
  std::pair<int64_t, int64_t> sizes(const char* shape) const {
    const auto size = [&](char letter) {
      return letter == 'T' ? p_.n.T : letter == 'K' ? p_.n.K : p_.n.C;
    };
    if (shape[1] == 0) return {1, 1};
    return {size(shape[1]), shape[2] == 0 ? 1 : size(shape[2])};
  }

  Problem& p_;
};

template <class Args>
Args filled(Problem& p) {
  Args args;
  Filler filler(p);
  args.fields(filler);
  args.n = p.n;
  return args;
}

}  // namespace kanerva
