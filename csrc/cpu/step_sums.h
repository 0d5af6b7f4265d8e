// The sums over the steps of an episode that its posterior is made of, in one arithmetic.
#pragma once

#include "load.h"
#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

// Steps of item b: `index` (absent: all in order) and their weights s, the inverses of their noise.
struct WeightedSteps {
  const View &weights, &values;
  int64_t b, count;
  const int64_t* index;
  const double* scale;
};

// Adds sum s w w' to the upper part of G, sum s w z' to H, and returns sum s |z|^2, added up in
// float64; of G or of H and the squares nothing where it is absent.
template <class F>
double add_steps(const WeightedSteps& steps, const Matrix<F>& G, const Matrix<F>& H,
                 const Executor& executor) {
  constexpr int64_t at_a_time = 256;
  const int64_t K = G ? G.columns : H.rows, most = std::min(at_a_time, steps.count);
  if (most == 0) return 0.0;
  using V = Simd<double>;
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<F> W(scope, most, K), scaled(scope, most, K),
      Z = H ? Matrix<F>(scope, most, H.columns) : Matrix<F>();
  double squares = 0.0;
  for (int64_t first = 0; first < steps.count; first += most) {
    const int64_t count = std::min(most, steps.count - first);
    const Rows rows{steps.index, first};
    load(executor, steps.weights, steps.b, rows, count, W);
    for_rows(executor, count, K, [&](int64_t begin, int64_t some) {
      for (int64_t t = begin; t < begin + some; ++t) {
        const F s = F(steps.scale[first + t]);
        for (int64_t k = 0; k < W.ld; ++k) scaled[t][k] = k < K ? s * W[t][k] : F(0);
      }
    });
    if (G) product_transposed(executor, count, W, scaled, G, Store::add, Part::upper);
    if (!H) continue;
    load(executor, steps.values, steps.b, rows, count, Z);
    product_transposed(executor, count, scaled, Z, H, Store::add);
    for (int64_t t = 0; t < count; ++t) {
      typename V::Vector sum{};
      for (int64_t j = 0; j < H.columns; j += V::width) {
        const auto z = V::load_as(Z[t] + j);
        sum += z * z;
      }
      squares += V::sum(sum) * steps.scale[first + t];
    }
  }
  return squares;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
