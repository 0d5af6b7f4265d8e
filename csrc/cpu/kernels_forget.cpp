// Exact removal of written steps: the write with negative noise, in chunks, and its adjoint.
//
// For a chunk with addresses W (L x K) and the belief (R, U) before it,
//   X = W U,  S = V - X W' = F F',  P = F^-1 X,  E = F^-1 (Z - W R),  R -= P'E,  U += P'P.
// S has a factor exactly where every step was in the memory. All that is as wide as the memory is
// float64; what is as wide as the code follows v / s, by which the remaining variances grow.
#include "bayes_write.h"
#include "kernels.h"
#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

// Factors of a chunk, c.hardness its largest v / s. False when a step was never written.
inline bool factor_to_forget(Chunk<double>& c, const Matrix<double>& U, const Executor& executor) {
  transpose(c.W, c.Wt);
  product(executor, c.W, U, c.X);
  c.S.zero();
  product(executor, c.X, c.Wt, c.S, Store::sub, Part::upper);
  for (int64_t t = 0; t < c.L; ++t) c.S[t][t] += c.noise[t];
  if (!whiten(c, executor)) return false;
  c.hardness = 0.0;
  for (int64_t t = 0; t < c.L; ++t) {
    const double inverse = c.inverse_diagonal[t];
    c.hardness = std::max(c.hardness, c.noise[t] * inverse * inverse);
  }
  return true;
}

// One episode with the columns in arithmetic A; `limit`: the hardness above which A is given up.
template <class A>
Outcome forget_item(const ForgetArgs& args, int64_t b, const Episode& e, double limit,
                    const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C, step = chunk_steps(K, e.steps);
  Workspace::Scope scope(Workspace::of_thread());
  Chunk<double> chunk(scope, step, K);
  ChunkFactors<A> f(scope, chunk);
  Matrix<double> U(scope, K, K);
  Matrix<A> R(scope, K, C), all_D(scope, step, C), all_E(scope, step, C);
  load_covariance(executor, args.cov, b, U);
  load(executor, args.mean, b, Rows{}, K, R);
  symmetrise(U);
  for (int64_t first = 0; first < e.steps; first += step) {
    load_chunk(chunk, args.weights, b, e, first, std::min(step, e.steps - first));
    if (!factor_to_forget(chunk, U, executor)) return Outcome::failed;
    if (!(chunk.hardness <= limit)) return Outcome::harder;
    f.take(chunk);
    const int64_t L = chunk.L;
    const Matrix<A> D = all_D.top(L), E = all_E.top(L);
    load(executor, args.values, b, Rows{e.index, first}, L, D);
    product(executor, f.W, R, D, Store::sub);
    product_transposed(executor, f.V, D, E);
    product_transposed(executor, f.P, E, R, Store::sub);
    product_transposed(executor, chunk.P, chunk.P, U, Store::add, Part::upper);
    mirror(U);
  }
  if (not_finite(K, R) || not_finite(K, U)) return Outcome::failed;
  store(executor, args.mean_out, b, Rows{}, K, R);
  store(executor, args.cov_out, b, Rows{}, K, U);
  return Outcome::done;
}

inline void forget(const ForgetArgs& args, const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = double(T + K) * double(K) * double(2 * K + C);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_episode(scope, T, b, args.noise_var, args.mask, View{});
    Outcome outcome = Outcome::failed;
    if (e.valid) {
      outcome = Outcome::harder;
      if (args.mean.dtype == Dtype::float32 && !is_small(e.steps, args.n))
        outcome = forget_item<float>(args, b, e, kHardForFloat32Factors, inner);
      // Values whose products overflow float32 may still do in float64.
      if (outcome != Outcome::done) outcome = forget_item<double>(args, b, e, kNoLimit, inner);
    }
    if (outcome != Outcome::done) {
      fill(args.mean_out, b, K, C, NAN);
      fill(args.cov_out, b, K, K, NAN);
    }
  });
}

// The adjoint from what remains, (R, U), in arithmetic A. With the gradients gR and gU
// (symmetrised),
//   A = -(Z - W R) / v,  G = -W U / v,
//   dZ = G gR,  dW = (A gR' - 2 G gU) U - dZ R',  dv = rowsum(dZ * A - G gU * G),
//   J' = I - W'G,  dR0 = J' gR,  dU0 = J' gU J + sym(J' gR A'W).
// No step waits for another, and nothing cancels: forgetting only adds.
template <class A>
class ForgetAdjoint {
 public:
  ForgetAdjoint(const ForgetBackwardArgs& args, int64_t b, const Episode& e,
                const Executor& executor)
      : args_(args),
        b_(b),
        e_(e),
        executor_(executor),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        R_(scope_, K_, C_),
        U_(scope_, K_, K_),
        gR_(scope_, K_, C_),
        gU_(scope_, K_, K_),
        keep_(scope_, K_, K_),
        AW_(scope_, C_, K_) {}

  // `limit`: the growth max w'Uw / v beyond which A is given up.
  Outcome run(double limit) {
    load(executor_, args_.rest_mean, b_, Rows{}, K_, R_);
    load(executor_, args_.rest_cov, b_, Rows{}, K_, U_);
    if (not_finite(K_, R_) || not_finite(K_, U_)) return Outcome::failed;
    load_or_zero(executor_, args_.grad_mean, b_, gR_);
    load_or_zero(executor_, args_.grad_cov, b_, gU_);
    symmetrise(gU_);
    set_identity(keep_);
    AW_.zero();
    if (!steps(limit)) return Outcome::harder;
    return state() ? Outcome::done : Outcome::harder;
  }

 private:
  // dZ, dW and dv, in tiles; keep_ becomes J' and AW_ A'W.
  bool steps(double limit) const {
    const int64_t tile = std::min(kTile, e_.steps);
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> W(scope, tile, K_), D(scope, tile, C_), G(scope, tile, K_), GU(scope, tile, K_);
    Matrix<A> dZ(scope, tile, C_), dW(scope, tile, K_), mixed(scope, tile, K_);
    Matrix<A> gRt(scope, C_, K_), Rt(scope, C_, K_);
    transpose(executor_, gR_, gRt);
    transpose(executor_, R_, Rt);
    for (int64_t first = 0; first < e_.steps; first += tile) {
      const int64_t m = std::min(tile, e_.steps - first);
      const Rows rows{e_.index, first};
      load(executor_, args_.weights, b_, rows, m, W);
      load(executor_, args_.values, b_, rows, m, D);
      product(executor_, m, W, R_, D, Store::sub);
      product(executor_, m, W, U_, G);
      for (int64_t t = 0; t < m; ++t) {
        const double inverse = -1.0 / e_.noise[first + t];
        scale(0, C_, inverse, D[t]);  // D becomes A of above
        scale(0, K_, inverse, G[t]);
        if (!(-row_dot(K_, G[t], W[t]) <= limit)) return false;
      }
      product(executor_, m, G, gR_, dZ);
      product(executor_, m, G, gU_, GU);
      store(executor_, args_.d_values, b_, rows, m, dZ);
      for (int64_t t = 0; t < m; ++t)
        store_scalar(args_.d_noise_var, b_, rows[t],
                     row_dot(C_, dZ[t], D[t]) - row_dot(K_, GU[t], G[t]));
      product(executor_, m, D, gRt, mixed);
      for (int64_t t = 0; t < m; ++t) axpy(0, K_, -2.0, GU[t], mixed[t]);
      product(executor_, m, mixed, U_, dW);
      product(executor_, m, dZ, Rt, dW, Store::sub);
      store(executor_, args_.d_weights, b_, rows, m, dW);
      product_transposed(executor_, m, W, G, keep_, Store::sub);
      product_transposed(executor_, m, D, W, AW_, Store::add);
    }
    return true;
  }

  // False where products overflowed A.
  bool state() const {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> dR(scope, K_, C_), dU(scope, K_, K_), left(scope, K_, K_), J(scope, K_, K_);
    product(executor_, K_, keep_, gR_, dR);
    store(executor_, args_.d_mean, b_, Rows{}, K_, dR);
    product(executor_, K_, keep_, gU_, left);
    transpose(executor_, keep_, J);
    product(executor_, K_, dR, AW_, dU);
    symmetrise(dU);
    product(executor_, left, J, dU, Store::add, Part::upper);
    mirror(dU);
    store(executor_, args_.d_cov, b_, Rows{}, K_, dU);
    return std::is_same_v<A, double> || !not_finite(K_, dU);
  }

  const ForgetBackwardArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const Matrix<A> R_, U_, gR_, gU_, keep_, AW_;
};

inline void forget_backward(const ForgetBackwardArgs& args, const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = double(T + K) * double(K) * double(5 * K + 5 * C);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_episode(scope, T, b, args.noise_var, args.mask, View{});
    const auto fill_steps = [&](double x) {
      fill(args.d_weights, b, T, K, x);
      fill(args.d_values, b, T, C, x);
      fill(args.d_noise_var, b, T, 1, x);
    };
    if (e.index) fill_steps(0.0);  // masked steps have no gradient
    Outcome outcome = Outcome::failed;
    if (e.valid) {
      outcome = Outcome::harder;
      if (args.mean.dtype == Dtype::float32 && !is_small(e.steps, args.n))
        outcome = ForgetAdjoint<float>(args, b, e, inner).run(kHardForFloat32Factors);
      if (outcome == Outcome::harder)
        outcome = ForgetAdjoint<double>(args, b, e, inner).run(kNoLimit);
    }
    if (outcome == Outcome::done) return;
    fill_steps(NAN);
    fill(args.d_mean, b, K, C, NAN);
    fill(args.d_cov, b, K, K, NAN);
  });
}

KANERVA_KERNEL(forget, ForgetArgs)
KANERVA_KERNEL(forget_backward, ForgetBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
