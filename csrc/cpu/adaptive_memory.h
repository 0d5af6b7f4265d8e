// A memory that is written step by step at addresses solved against it as it stands (the Dynamic
// Kanerva Machine's write), with what is as wide as the code in arithmetic A and the rest in
// float64.
#pragma once

#include "tracked_inverse.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

// What an address w makes of a step with value z and noise v: c = U w, h = w'c, s = h + v, gamma =
// c / s, d = z - R'w.
template <class A>
struct Update {
  A *w, *d, *gamma;
  double *wide_w, *c, *wide_gamma;
  double h = 0.0, s = 1.0, energy = 0.0;

  Update(Workspace::Scope& scope, int64_t K, int64_t C)
      : w(take_vector<A>(scope, K)),
        d(take_vector<A>(scope, C)),
        gamma(take_vector<A>(scope, K)),
        wide_w(take_vector<double>(scope, K)),
        c(take_vector<double>(scope, K)),
        wide_gamma(take_vector<double>(scope, K)) {}
};

template <class A>
class AdaptiveMemory {
 public:
  const int64_t K, C;
  DelayedMatrix<A> R;
  DelayedMatrix<double> U;
  TrackedInverse inverse;
  Update<A> now;

  AdaptiveMemory(Workspace::Scope& scope, const Sizes& n, const Executor& ex)
      : K(n.K),
        C(n.C),
        R(scope, n.K, n.C, ex),
        U(scope, n.K, n.K, ex),
        inverse(scope, n, ex),
        now(scope, n.K, n.C),
        z(take_vector<A>(scope, n.C)),
        next_(take_vector<A>(scope, n.C)),
        wide_z_(take_vector<double>(scope, n.C)),
        sum_(take_vector<A>(scope, n.C)),
        x_(take_vector<double>(scope, n.K)),
        y_(take_vector<double>(scope, std::max(n.K, n.C))),
        signed_(take_vector<double>(scope, n.K)) {}

  A* z;  // the value of the step at hand

  void load_state(const View& mean, const View& cov, double ridge, int64_t b) {
    load(mean, b, Rows{}, K, R.base);
    load(cov, b, Rows{}, K, U.base);
    symmetrise(U.base);
    inverse.ridge = ridge;
  }

  // The inverse afresh; false where there is none that serves in arithmetic A.
  bool refresh() {
    R.settle();
    return inverse.refresh(R.base) && serves();
  }

  void settle() {
    R.settle();
    U.settle();
  }

  // Whether the system is conditioned well enough for arithmetic A.
  bool serves() const {
    return sizeof(A) == sizeof(double) || inverse.condition <= kTrackedInFloat32;
  }

  // The value of the step that comes next; advance() makes it z.
  void load_next(const View& values, int64_t b, int64_t step) {
    load(values, b, Rows{nullptr, step}, 1, 0, C, next_, padded<A>(C));
  }

  void advance() {
    std::swap(z, next_);
    if (!inverse.wide) scaled(C, 1.0, z, wide_z_);
  }

  // now.w solves the memory.
  void solve() {
    if (inverse.wide) {
      if (!x_is_known_) R.multiply(z, x_);
      inverse.apply(x_, now.wide_w);
      if (sizeof(A) == sizeof(double)) refine();
    } else {
      inverse.apply(wide_z_, y_);
      if (sizeof(A) == sizeof(double)) refine_narrow();
      scaled(C, 1.0, y_, sum_);
      R.multiply(sum_, now.wide_w);
    }
    round();
  }

  // The update that now.w makes, of noise v; false where arithmetic A does not serve.
  bool propose(double v) {
    propose(now, v);
    return sizeof(A) == sizeof(double) || now.h <= kHardStepInFloat32 * v;
  }

  void propose(Update<A>& u, double v) const {
    U.multiply_transposed(u.wide_w, u.c);
    u.h = row_dot(K, u.wide_w, u.c);
    u.s = u.h + v;
    scaled(K, 1.0 / u.s, u.c, u.wide_gamma);
    scaled(K, 1.0, u.wide_gamma, u.gamma);
    R.multiply_transposed(u.w, sum_);
    using V = Simd<A>;
    typename V::Vector total{};
    for (int64_t j = 0; j < C; j += V::width) {
      const auto d = V::load(z + j) - V::load(sum_ + j);
      V::store(u.d + j, d);
      total += d * d;
    }
    u.energy = V::sum(total);
  }

  // now.w solves the memory as it would stand after what is proposed. False where the inverse of
  // that loses digits.
  bool solve_again() {
    if (!prepare(now)) return false;
    double dz = 0.0;
    if (inverse.wide) {
      for (int64_t j = 0; j < C; ++j) dz += double(now.d[j]) * double(z[j]);
      if (!x_is_known_) R.multiply(z, x_);
      x_is_known_ = true;
      for (int64_t i = 0; i < K; ++i) y_[i] = x_[i] + dz * now.wide_gamma[i];
      inverse.apply(y_, now.wide_w);
      inverse.correct(y_, now.wide_w);
    } else {
      inverse.apply(wide_z_, y_);
      inverse.correct(wide_z_, y_);
      scaled(C, 1.0, y_, sum_);
      for (int64_t j = 0; j < C; ++j) dz += double(now.d[j]) * y_[j];
      R.multiply(sum_, now.wide_w);
      for (int64_t i = 0; i < K; ++i) now.wide_w[i] += dz * now.wide_gamma[i];
    }
    round();
    return true;
  }

  // The inverse of the system as u would leave it, for inverse.correct(). False where it loses
  // digits.
  bool prepare(const Update<A>& u) {
    if (inverse.wide) R.multiply(u.d, inverse.p);
    return prepare_inverse(u);
  }

  // p and g of what u changes in the system of R, and their images; `sign` is -1 where R is what
  // comes back and the inverse that of what goes. In the wide form inverse.p holds R d already.
  bool prepare_inverse(const Update<A>& u, double sign = 1.0) {
    if (inverse.wide) {
      for (int64_t i = 0; i < K; ++i) {
        inverse.g[i] = u.wide_gamma[i];
        inverse.p[i] = sign * (inverse.p[i] + 0.5 * u.energy * inverse.g[i]);
      }
    } else {
      R.multiply_transposed(u.gamma, sum_);
      const double half = 0.5 * row_dot(K, u.wide_gamma, u.wide_gamma);
      for (int64_t j = 0; j < C; ++j) {
        inverse.g[j] = double(u.d[j]);
        inverse.p[j] = sign * (double(sum_[j]) + half * inverse.g[j]);
      }
    }
    return inverse.prepare();
  }

  // R += gamma d', U -= g g' and, if another step follows, whose value is loaded, the inverse.
  // False when that cannot be had.
  bool commit(bool more) {
    update_cov(now, -1.0);
    x_is_known_ = more && inverse.wide;
    bool updated = more && inverse.age < inverse.period;
    if (x_is_known_) {
      R.add_and_multiply(now.gamma, now.d, inverse.p, next_, x_);
      updated = updated && prepare_inverse(now);
    } else {
      updated = updated && prepare_inverse(now);
      R.add(now.gamma, now.d);
    }
    if (updated) {
      inverse.commit();
      return serves();
    }
    return !more || refresh();
  }

  // U += sign g g', g = c / sqrt(s)
  void update_cov(const Update<A>& u, double sign) {
    scaled(K, 1.0 / std::sqrt(u.s), u.c, y_);
    scaled(K, sign, y_, signed_);
    U.add(signed_, y_);
  }

 private:
  // The address in arithmetic A: what is written is what the caller will see. In float64 it stays
  // as it is, also for a float32 state: where noise is small, rounding w would round all of d.
  void round() {
    scaled(K, 1.0, now.wide_w, now.w);
    if (sizeof(A) < sizeof(double)) scaled(K, 1.0, now.w, now.wide_w);
  }

  // One step of iterative refinement of w: += A^-1 (R (z - R'w) - lambda w)
  void refine() {
    scaled(K, 1.0, now.wide_w, now.w);
    R.multiply_transposed(now.w, sum_);
    for (int64_t j = 0; j < C; ++j) sum_[j] = z[j] - sum_[j];
    R.multiply(sum_, y_);
    add_scaled(K, -inverse.ridge, now.wide_w, y_);
    double* more = now.wide_gamma;  // free until the update is proposed
    inverse.apply(y_, more);
    add_scaled(K, 1.0, more, now.wide_w);
  }

  // The same of u, where w = R u: += A^-1 (z - R'(R u) - lambda u)
  void refine_narrow() {
    scaled(C, 1.0, y_, sum_);
    R.multiply(sum_, x_);
    scaled(K, 1.0, x_, now.w);
    R.multiply_transposed(now.w, sum_);
    double *residual = inverse.g, *more = inverse.P;  // free until the next update
    for (int64_t j = 0; j < C; ++j)
      residual[j] = wide_z_[j] - double(sum_[j]) - inverse.ridge * y_[j];
    inverse.apply(residual, more);
    add_scaled(C, 1.0, more, y_);
  }

  A* next_;
  double* wide_z_;
  A* sum_;                    // C
  double *x_, *y_, *signed_;  // R z; room
  bool x_is_known_ = false;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
