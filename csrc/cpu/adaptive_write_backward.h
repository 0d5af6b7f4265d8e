// The adjoint of the Dynamic Kanerva write: the episode is run again, keeping what each step did,
// and then step by step backwards. A step is undone by adding back what it took, U + g g' and R -
// gamma d', in which nothing cancels; memory is O(T (K + C)).
#pragma once

#include "adaptive_write.h"

namespace kanerva {
namespace KANERVA_ISA {

// What the steps of an episode did, and the addresses that were tried before.
template <class A>
struct AdaptiveRecord {
  Matrix<double> c;
  Matrix<A> w, d, tried;
  double* s;

  AdaptiveRecord(Workspace::Scope& scope, int64_t steps, int64_t num_iters, int64_t K, int64_t C)
      : c(scope, steps, K),
        w(scope, steps, K),
        d(scope, steps, C),
        tried(scope, steps * (num_iters - 1), K),
        s(scope.take<double>(steps)) {}
};

template <class A>
class AdaptiveAdjoint {
 public:
  AdaptiveAdjoint(Workspace::Scope& scope, const AdaptiveWriteBackwardArgs& args, int64_t b,
                  const Episode& e, double ridge, const Executor& executor)
      : args_(args),
        b_(b),
        e_(e),
        steps_{e.index},
        ridge_(ridge),
        executor_(executor),
        K_(args.n.K),
        C_(args.n.C),
        m_(scope, args.n, executor),
        record_(scope, e.steps, args.num_iters, K_, C_),
        tried_(scope, K_, C_),
        gR_(scope, K_, C_, executor),
        gU_(scope, K_, K_, executor),
        gz_(take_vector<A>(scope, C_)),
        gd_(take_vector<A>(scope, C_)),
        q_(take_vector<A>(scope, C_)),
        residual_(take_vector<A>(scope, C_)),
        y_(take_vector<A>(scope, K_)),
        minus_(take_vector<A>(scope, K_)),
        gw_(take_vector<double>(scope, K_)),
        gc_(take_vector<double>(scope, K_)),
        n_(take_vector<double>(scope, K_)),
        wide_y_(take_vector<double>(scope, K_)),
        room_(take_vector<double>(scope, std::max(K_, C_))) {
    if (args.grad_log_evidence) gl_ = load_scalar<double>(args.grad_log_evidence, b);
  }

  bool run() {
    m_.load_state(args_.mean, args_.cov, ridge_, b_);
    if (!forward()) return false;
    load_or_zero(executor_, args_.grad_mean, b_, gR_.base);
    load_or_zero(executor_, args_.grad_cov, b_, gU_.base);
    symmetrise(gU_.base);
    if (e_.steps > 0 && !m_.refresh()) return false;
    for (int64_t t = e_.steps - 1; t >= 0; --t)
      if (!reverse(t)) return false;
    gR_.settle();
    gU_.settle();
    if (not_finite(K_, gR_.base) || not_finite(K_, gU_.base)) return false;
    symmetrise(gU_.base);
    store(args_.d_mean, b_, Rows{}, K_, gR_.base);
    store(args_.d_cov, b_, Rows{}, K_, gU_.base);
    store_scalar(args_.d_ridge, b_, 0, g_ridge_);
    return true;
  }

 private:
  bool forward() {
    // Float64 for a float32 state was at work with addresses that were not rounded.
    const bool exact = args_.mean.dtype == Dtype::float64 || sizeof(A) < sizeof(double);
    const bool solves = args_.num_iters > 1 || !exact;
    if (e_.steps > 0 && solves && !m_.refresh()) return false;
    if (e_.steps > 0) m_.load_next(args_.values, b_, steps_[0]);
    for (int64_t t = 0; t < e_.steps; ++t) {
      m_.advance();
      if (solves) {
        const auto keep = [&](int64_t i) {
          std::memcpy(record_.tried[t * (args_.num_iters - 1) + i], m_.now.w,
                      size_t(padded<A>(K_)) * sizeof(A));
        };
        if (!propose_step(m_, e_.noise[t], args_.num_iters, keep)) return false;
      } else {
        load(args_.weights, b_, Rows{nullptr, steps_[t]}, 1, 0, K_, m_.now.w, padded<A>(K_));
        scaled(K_, 1.0, m_.now.w, m_.now.wide_w);
        if (!m_.propose(e_.noise[t])) return false;
      }
      std::memcpy(record_.w[t], m_.now.w, size_t(padded<A>(K_)) * sizeof(A));
      std::memcpy(record_.d[t], m_.now.d, size_t(padded<A>(C_)) * sizeof(A));
      std::memcpy(record_.c[t], m_.now.c, size_t(padded<double>(K_)) * sizeof(double));
      record_.s[t] = m_.now.s;
      const bool more = t + 1 < e_.steps;
      if (more) m_.load_next(args_.values, b_, steps_[t + 1]);
      if (!m_.commit(solves && more)) return false;
    }
    return true;
  }

  // The memory before step t, its inverse, and in m_.now what the step did.
  bool undo(int64_t t) {
    Update<A>& u = m_.now;
    std::memcpy(u.w, record_.w[t], size_t(padded<A>(K_)) * sizeof(A));
    std::memcpy(u.d, record_.d[t], size_t(padded<A>(C_)) * sizeof(A));
    std::memcpy(u.c, record_.c[t], size_t(padded<double>(K_)) * sizeof(double));
    scaled(K_, 1.0, u.w, u.wide_w);
    u.s = record_.s[t];
    u.h = u.s - e_.noise[t];
    u.energy = row_dot(C_, u.d, u.d);
    scaled(K_, 1.0 / u.s, u.c, u.wide_gamma);
    scaled(K_, 1.0, u.wide_gamma, u.gamma);
    scaled(K_, -1.0, u.wide_gamma, minus_);
    m_.update_cov(u, 1.0);
    if (m_.inverse.wide) {
      m_.R.add_and_multiply(minus_, u.d, room_, u.d, m_.inverse.p);
    } else {
      m_.R.add(minus_, u.d);
    }
    if (m_.inverse.age < m_.inverse.period && m_.prepare_inverse(u, -1.0)) {
      m_.inverse.commit();
      return m_.serves();
    }
    return m_.refresh();
  }

  bool reverse(int64_t t) {
    if (!undo(t)) return false;
    const int64_t step = steps_[t];
    const double v = e_.noise[t];
    if (args_.grad_weights) {
      load(args_.grad_weights, b_, Rows{nullptr, step}, 1, 0, K_, gw_, padded<double>(K_));
    } else {
      std::memset(gw_, 0, size_t(K_) * sizeof(double));
    }
    std::memset(gz_, 0, size_t(padded<A>(C_)) * sizeof(A));
    double gs = 0.0, gv = from_results(t, gs);
    Update<A>*u = &m_.now, *before = &tried_;  // of iterations i and i - 1
    if (args_.num_iters > 1) {
      m_.load_next(args_.values, b_, step);
      m_.advance();
    }
    for (int64_t i = args_.num_iters - 1; i >= 0; --i) {
      through_update(*u, gs);
      if (i == 0) {
        solve_adjoint(*u, nullptr);
        break;
      }
      load_tried(t, i - 1, v, *before);
      if (!m_.prepare(*before) && !(m_.refresh() && m_.prepare(*before))) return false;
      solve_adjoint(*u, before);
      gs = from_moved_memory(*before, *u);
      gv += gs;
      std::swap(u, before);
    }
    store_scalar(args_.d_noise_var, b_, step, gv);
    store(args_.d_values, b_, Rows{nullptr, step}, 1, 0, C_, gz_, padded<A>(C_));
    return true;
  }

  // gc, gd and gs of the update that was made, from gR, gU and the step's other results; returns
  // the gradient of the noise variance.
  double from_results(int64_t t, double& gs) {
    const Update<A>& u = m_.now;
    const int64_t step = steps_[t];
    const double v = e_.noise[t], s = u.s, energy = u.energy, code = double(C_);
    const double gk = args_.grad_step_kl ? load_scalar<double>(args_.grad_step_kl, b_, step) : 0.0;
    gR_.multiply_transposed(u.gamma, gd_);
    add_scaled(C_, gk * (1.0 / s - v / (s * s)) - gl_ / s, u.d, gd_);
    gR_.multiply(u.d, n_);
    gU_.multiply_transposed(u.c, room_);
    double cn = 0.0, ce = 0.0;
    for (int64_t i = 0; i < K_; ++i) {
      cn += u.c[i] * n_[i];
      ce += u.c[i] * room_[i];
      gc_[i] = (n_[i] - 2.0 * room_[i]) / s;
    }
    gs = (ce - cn) / (s * s) - 0.5 * gl_ * (code / s - energy / (s * s));
    gs += 0.5 * gk * (energy * (2.0 * v / s - 1.0) / (s * s) + code * (1.0 - v / s) / s);
    return gs + 0.5 * gk * (code / s - code / v - energy / (s * s));
  }

  // c = U w, s = w'c + v, d = z - R'w: gw += gs c + U gc - R gd and gU += sym(gc w'); the shares of
  // gR and gz wait for the adjoint of the solve.
  void through_update(const Update<A>& u, double gs) {
    add_scaled(K_, gs, u.wide_w, gc_);
    m_.U.multiply_transposed(gc_, room_);
    m_.R.multiply(gd_, n_);
    for (int64_t i = 0; i < K_; ++i) {
      gw_[i] += gs * u.c[i] + room_[i] - n_[i];
      gc_[i] *= 0.5;
    }
    gU_.add(gc_, u.wide_w, u.wide_w, gc_);
  }

  void load_tried(int64_t t, int64_t i, double v, Update<A>& u) {
    std::memcpy(u.w, record_.tried[t * (args_.num_iters - 1) + i],
                size_t(padded<A>(K_)) * sizeof(A));
    scaled(K_, 1.0, u.w, u.wide_w);
    m_.propose(u, v);
  }

  // The adjoint of the solve that gave u.w, at R or at R + gamma d' of `moved`, for gw: y_, q_ and
  // the residual; gz, gR and g lambda get their shares, and those of through_update().
  void solve_adjoint(const Update<A>& u, const Update<A>* moved) {
    std::memcpy(residual_, u.d, size_t(padded<A>(C_)) * sizeof(A));
    if (moved) add_scaled(C_, -row_dot(K_, moved->wide_gamma, u.wide_w), moved->d, residual_);
    if (m_.inverse.wide) {
      m_.inverse.apply(gw_, wide_y_);
      if (moved) m_.inverse.correct(gw_, wide_y_);
      scaled(K_, 1.0, wide_y_, y_);
      m_.R.multiply_transposed(y_, q_);
      if (moved) add_scaled(C_, row_dot(K_, moved->wide_gamma, wide_y_), moved->d, q_);
    } else {
      scaled(K_, 1.0, gw_, y_);
      m_.R.multiply_transposed(y_, q_);
      if (moved) add_scaled(C_, row_dot(K_, moved->wide_gamma, gw_), moved->d, q_);
      scaled(C_, 1.0, q_, room_);
      m_.inverse.apply(room_, m_.inverse.g);
      if (moved) m_.inverse.correct(room_, m_.inverse.g);
      scaled(C_, 1.0, m_.inverse.g, q_);
      m_.R.multiply(q_, n_);
      const double along = moved ? row_dot(C_, moved->d, q_) : 0.0;
      for (int64_t i = 0; i < K_; ++i) {
        const double moved_part = moved ? along * moved->wide_gamma[i] : 0.0;
        wide_y_[i] = (gw_[i] - n_[i] - moved_part) / ridge_;
      }
      scaled(K_, 1.0, wide_y_, y_);
    }
    g_ridge_ -= row_dot(K_, wide_y_, u.wide_w);
    using V = Simd<A>;
    for (int64_t j = 0; j < C_; j += V::width) {
      const auto both = V::load(gd_ + j) + V::load(q_ + j);
      V::store(gd_ + j, both);
      V::store(gz_ + j, V::load(gz_ + j) + both);
    }
    scaled(K_, -1.0, u.w, minus_);
    gR_.add(y_, residual_, minus_, gd_);
  }

  // R + gamma d' of `u` was solved for `next`: with gR of that y residual' - w q', gc, gd and gs of
  // u, and gw anew.
  double from_moved_memory(const Update<A>& u, const Update<A>& next) {
    const double along = row_dot(C_, residual_, u.d), back = row_dot(C_, q_, u.d);
    const double in = row_dot(K_, wide_y_, u.wide_gamma);
    const double out = row_dot(K_, next.wide_w, u.wide_gamma);
    double gc_c = 0.0;
    for (int64_t i = 0; i < K_; ++i) {
      gc_[i] = (along * wide_y_[i] - back * next.wide_w[i]) / u.s;
      gc_c += gc_[i] * u.c[i];
      gw_[i] = 0.0;
    }
    for (int64_t j = 0; j < C_; ++j) gd_[j] = A(in * double(residual_[j]) - out * double(q_[j]));
    return -gc_c / u.s;
  }

  const AdaptiveWriteBackwardArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Rows steps_;
  const double ridge_;
  const Executor& executor_;
  const int64_t K_, C_;
  AdaptiveMemory<A> m_;
  AdaptiveRecord<A> record_;
  Update<A> tried_;
  DelayedMatrix<A> gR_;
  DelayedMatrix<double> gU_;
  A *gz_, *gd_, *q_, *residual_;  // C
  A *y_, *minus_;                 // K
  double *gw_, *gc_, *n_, *wide_y_, *room_;
  double gl_ = 0.0, g_ridge_ = 0.0;
};

template <class A>
bool adaptive_adjoint(const AdaptiveWriteBackwardArgs& args, int64_t b, const Episode& e,
                      double ridge, const Executor& executor) {
  Workspace::Scope scope(Workspace::of_thread());
  return AdaptiveAdjoint<A>(scope, args, b, e, ridge, executor).run();
}

inline void adaptive_write_backward(const AdaptiveWriteBackwardArgs& args,
                                    const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = 3.0 * adaptive_operations(args.n, args.num_iters);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_episode(scope, T, b, args.noise_var, args.mask, View{});
    const double ridge = load_scalar<double>(args.ridge, b);
    bool done = false;
    if (e.valid && ridge > 0.0 && ridge < HUGE_VAL) {
      if (e.steps < T) {
        fill(args.d_values, b, T, C, 0.0);
        fill(args.d_noise_var, b, T, 1, 0.0);
      }
      if (args.mean.dtype == Dtype::float32 && !is_small(e.steps, args.n))
        done = adaptive_adjoint<float>(args, b, e, ridge, inner);
      done = done || adaptive_adjoint<double>(args, b, e, ridge, inner);
    }
    if (!done) {
      fill(args.d_mean, b, K, C, NAN);
      fill(args.d_cov, b, K, K, NAN);
      fill(args.d_values, b, T, C, NAN);
      fill(args.d_noise_var, b, T, 1, NAN);
      store_scalar(args.d_ridge, b, 0, NAN);
    }
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
