// The sums of information.h by themselves; several processes add up theirs.
#pragma once

#include "../common/episode_sums.h"
#include "information.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class F>
void sums_of_item(const EpisodeSumsArgs& args, int64_t b, const Executor& executor) {
  using V = Simd<double>;
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const int64_t most = std::max<int64_t>(1, std::min(kInformationSteps, T));
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<F> W(scope, most, K), Ws(scope, most, K), Z(scope, most, C), G(scope, K, K),
      H(scope, K, C);
  const double* scale = static_cast<const double*>(args.scale.data) + b * args.scale.stride[0];
  double energy = 0.0;
  G.zero();
  H.zero();
  for (int64_t first = 0; first < T; first += most) {
    const int64_t steps = std::min(most, T - first);
    load(executor, args.weights, b, Rows{nullptr, first}, steps, W);
    load(executor, args.values, b, Rows{nullptr, first}, steps, Z);
    for_rows(executor, steps, K, [&](int64_t begin, int64_t count) {
      for (int64_t t = begin; t < begin + count; ++t) {
        const F s = F(scale[(first + t) * args.scale.stride[1]]);
        for (int64_t k = 0; k < Ws.ld; ++k) Ws[t][k] = k < K ? s * W[t][k] : F(0);
      }
    });
    if (args.g) product_transposed(executor, steps, W, Ws, G, Store::add, Part::upper);
    product_transposed(executor, steps, Ws, Z, H, Store::add);
    for (int64_t t = 0; t < steps; ++t) {
      typename V::Vector sum{};
      for (int64_t j = 0; j < C; j += V::width) {
        const auto z = V::load_as(Z[t] + j);
        sum += z * z;
      }
      energy += V::sum(sum) * scale[(first + t) * args.scale.stride[1]];
    }
  }
  if (args.g) {
    mirror(G);
    store(executor, args.g, b, Rows{}, K, G);
  }
  store(executor, args.h, b, Rows{}, K, H);
  store_scalar(args.energy, b, 0, energy);
}

inline void episode_sums_here(const EpisodeSumsArgs& args, const Executor& executor) {
  const double operations = double(args.n.T) * double(args.n.K) * double(args.n.K + 2 * args.n.C);
  for_each_item(args.n.B, operations, executor, [&](int64_t b, const Executor& inner) {
    if (args.h.dtype == Dtype::float32) {
      sums_of_item<float>(args, b, inner);
    } else {
      sums_of_item<double>(args, b, inner);
    }
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
