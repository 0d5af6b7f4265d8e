// The adjoint of the write of one memory that moves, by a team, in closed form, chunk by chunk. The
// algebra and its names are those of ../cpu/stationary_adjoint.h and stationary_prepared.h.
#pragma once

#include "reverse_chunks.cuh"
#include "stationary_block.cuh"

namespace kanerva::cuda {

template <class F>
struct StationaryAdjointBuffers {
  StationaryChunk<F> chunk;
  double *from_here, *through, *tail;         // L: of the retentions, by their logarithms
  Mat<F> inner, room, dS;                     // L x L: I; V I, then sums of dS; V I V'
  Mat<F> moved, Y, VP, N, PU, DR, IY, M, dB;  // L x K: D_b W, V'D_b W, V P, N~, P gU, D^ R' ...
  Mat<F> fresh;                               // L x K: what goes through Sigma
  Mat<F> D, E;                                // L x C
  Mat<F> gU, dSigma, R, gR;                   // K x K twice, K x C twice; dSigma may be null
  double* slope;                              // L: gv; only with reads, like what follows
  Mat<F> Q, moved_Q, OR, QU, QS;              // L x K: D_b Q, gO R', Q U and Q Sigma
  Mat<F> gO;                                  // L x C
  Mat<F> cross, inside, delta, dA, new_dA;    // L x L: A' before V' and after, Delta', dA', N o dA'
  Mat<F> drift, settled;                      // L x L: W (U - Sigma) Q' and W Sigma Q'

  __host__ __device__ StationaryAdjointBuffers(Arena& arena, int L, int K, int C, bool reads,
                                               bool identity)
      : chunk(arena, L, K, identity, true),
        from_here(arena.take<double>(L)),
        through(arena.take<double>(L)),
        tail(arena.take<double>(L)),
        inner(arena.matrix<F>(L, L)),
        room(arena.matrix<F>(L, L)),
        dS(arena.matrix<F>(L, L)),
        moved(arena.matrix<F>(L, K)),
        Y(arena.matrix<F>(L, K)),
        VP(arena.matrix<F>(L, K)),
        N(arena.matrix<F>(L, K)),
        PU(arena.matrix<F>(L, K)),
        DR(arena.matrix<F>(L, K)),
        IY(arena.matrix<F>(L, K)),
        M(arena.matrix<F>(L, K)),
        dB(arena.matrix<F>(L, K)),
        fresh(arena.matrix<F>(L, K)),
        D(arena.matrix<F>(L, C)),
        E(arena.matrix<F>(L, C)),
        gU(arena.matrix<F>(K, K)),
        dSigma(matrix_if<F>(!identity, arena, K, K)),
        R(arena.matrix<F>(K, C)),
        gR(arena.matrix<F>(K, C)),
        slope(reads ? arena.take<double>(L) : nullptr),
        Q(matrix_if<F>(reads, arena, L, K)),
        moved_Q(matrix_if<F>(reads, arena, L, K)),
        OR(matrix_if<F>(reads, arena, L, K)),
        QU(matrix_if<F>(reads, arena, L, K)),
        QS(either(identity, Q, matrix_if<F>(reads && !identity, arena, L, K))),
        gO(matrix_if<F>(reads, arena, L, C)),
        cross(matrix_if<F>(reads, arena, L, L)),
        inside(matrix_if<F>(reads, arena, L, L)),
        delta(matrix_if<F>(reads, arena, L, L)),
        dA(matrix_if<F>(reads, arena, L, L)),
        new_dA(matrix_if<F>(reads, arena, L, L)),
        drift(matrix_if<F>(reads, arena, L, L)),
        settled(matrix_if<F>(reads, arena, L, L)) {}
};

template <class F, class Args>
class StationaryAdjoint {
 public:
  // `limit` none: chunks of one step.
  __device__ StationaryAdjoint(const Args& args, const Item& item, int steps, Arena arena,
                               char* states, double limit)
      : args_(args),
        item_(item),
        b_(item.state),
        steps_(steps),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        m_(arena, steps, K_, C_, kReads<Args>, args.stationary_cov.data == nullptr),
        states_(states, K_, C_),
        limit_(limit),
        gl_(args.grad_log_evidence.data != nullptr ? scalar(args.grad_log_evidence, item.dynamics)
                                                   : 0.0) {}

  // From the gradients of the belief after the steps, item `after` of these.
  __device__ Outcome run(const View& grad_mean, const View& grad_cov, int64_t after) {
    load_or_zero(grad_cov, after, 0, K_, K_, m_.gU);
    load_or_zero(grad_mean, after, 0, K_, C_, m_.gR);
    load_stationary(args_.stationary_cov, item_.dynamics, K_, m_.chunk);
    const bool is_wanted = m_.dSigma.data != nullptr;
    if (is_wanted) each(K_, K_, [&](int i, int j) { m_.dSigma(i, j) = F(0); });
    sync();
    symmetrise(K_, m_.gU);
    const Outcome outcome = reverse_chunks(*this, Segments(item_.steps, steps_));
    if (outcome != Outcome::done) return outcome;
    store(args_.d_mean, b_, 0, 0, K_, C_, m_.gR);
    store(args_.d_cov, b_, 0, 0, K_, K_, m_.gU);
    if (is_wanted) {
      symmetrise(K_, m_.dSigma);
      store(args_.d_stationary_cov, b_, 0, 0, K_, K_, m_.dSigma);
    }
    return Outcome::done;
  }

  // What reverse_chunks() asks for.
  __device__ void keep(int64_t i) const { states_.keep(i, m_.chunk.U, m_.R); }
  __device__ void restore(int64_t i) const { states_.restore(i, m_.chunk.U, m_.R); }

  __device__ __noinline__ Outcome load_state() const {
    load_covariance(args_.cov, b_, K_, m_.chunk.U);
    load(args_.mean, b_, 0, 0, K_, C_, m_.R);
    sync();
    return Outcome::done;
  }

  __device__ __noinline__ Outcome advance(int64_t chunk) {
    const StationaryChunk<F>& c = m_.chunk;
    const Outcome outcome = factor(chunk, false);
    if (outcome != Outcome::done) return outcome;
    const F kept = F(c.kept[L_ - 1]);
    product<true, false>(K_, C_, L_, c.P, m_.E,
                         [&](int i, int j, F x) { m_.R(i, j) = kept * m_.R(i, j) + x; });
    downdate(L_, K_, c);
    sync();
    return Outcome::done;
  }

  // The adjoint of a chunk at its starting state: gU and gR become those of that state.
  __device__ __noinline__ Outcome reverse(int64_t chunk) {
    const Outcome outcome = factor(chunk, true);
    if (outcome != Outcome::done) return outcome;
    const double end = multiply_gradients();
    reverse_columns();
    reverse_factors(end);
    return Outcome::done;
  }

 private:
  // Factors, E and P; to be reversed, Y and what the reads take from the factors too. Leaves the
  // team synchronised.
  __device__ __noinline__ Outcome factor(int64_t chunk, bool reverses) {
    const StationaryChunk<F>& c = m_.chunk;
    const int64_t passed = chunk * steps_;
    first_ = item_.first + passed;
    L_ = int(passed + steps_ <= item_.steps ? steps_ : item_.steps - passed);
    const int L = L_, K = K_;
    if (!load_chunk(args_, item_.row, first_, L, c)) return Outcome::failed;
    load(args_.values, item_.row, first_, 0, L, C_, m_.D, c.counts);
    if constexpr (kReads<Args>)
      if (reverses) load_read_gradients();
    const bool easy = factor_chunk(L, K, c, limit_, [&] {
      each(L, K, [&](int t, int k) { m_.moved(t, k) = F(c.kept[t]) * c.W(t, k); });
      product<false, false>(L, C_, K, c.W, m_.R,
                            [&](int i, int j, F x) { m_.D(i, j) -= F(c.kept[i]) * x; });
      if constexpr (kReads<Args>)
        if (reverses) multiply_queries();
    });
    if (!easy) return limit_ == kNoLimit ? Outcome::failed : Outcome::harder;
    form_gain(L, K, c);
    product<false, false>(L, C_, L, c.V, m_.D, [&](int i, int j, F x) { m_.E(i, j) = x; });
    if (reverses) {
      product<false, false>(L, K, L, c.V, m_.moved, [&](int i, int j, F x) { m_.Y(i, j) = x; });
      if constexpr (kReads<Args>)
        product<false, false>(L, L, L, c.V, m_.cross,
                              [&](int i, int j, F x) { m_.inside(i, j) = j >= i ? x : F(0); });
    }
    sync();
    product<false, false>(L, K, L, c.V, c.gain, [&](int i, int j, F x) { c.P(i, j) = x; });
    sync();
    return Outcome::done;
  }

  // Q, gO and gv of the chunk. Not synchronised.
  __device__ __noinline__ void load_read_gradients() const {
    load(args_.queries, item_.row, first_, 0, L_, K_, m_.Q);
    if (args_.grad_reads.data != nullptr) {
      load(args_.grad_reads, item_.row, first_, 0, L_, C_, m_.gO);
    } else {
      each(L_, C_, [&](int i, int j) { m_.gO(i, j) = F(0); });
    }
    const View& var = args_.grad_read_var;
    for (int t = thread(); t < L_; t += threads())
      m_.slope[t] = var.data == nullptr ? 0.0 : scalar(var, item_.row, first_ + t);
  }

  // A' before V', and Q~. Not synchronised.
  __device__ __noinline__ void multiply_queries() const {
    const StationaryChunk<F>& c = m_.chunk;
    product<false, true>(L_, L_, K_, c.X, m_.Q, [&](int i, int j, F x) {
      m_.cross(i, j) = c.moved(i, j) * x;
      m_.drift(i, j) = x;
    });
    product<false, true>(L_, L_, K_, c.WS, m_.Q, [&](int i, int j, F x) {
      m_.cross(i, j) += c.renewal(i, j) * x;
      m_.drift(i, j) -= x;
      m_.settled(i, j) = x;
    });
    each(L_, K_, [&](int t, int k) { m_.moved_Q(t, k) = F(c.kept[t]) * m_.Q(t, k); });
  }

  // N~, P gU, V P, E E', B' and what else is multiplied by gradients before they are changed; gives
  // what the last retention gets from the state. Leaves the team synchronised.
  __device__ __noinline__ double multiply_gradients() const {
    const StationaryChunk<F>& c = m_.chunk;
    const int L = L_, K = K_, C = C_;
    const Mat<F> H = c.S;  // is free
    product<false, true>(L, K, C, m_.E, m_.gR, [&](int i, int j, F x) { m_.N(i, j) = x; });
    product<false, false>(L, K, K, c.P, m_.gU, [&](int i, int j, F x) { m_.PU(i, j) = x; });
    product<true, false>(L, K, L, c.V, c.P, [&](int i, int j, F x) { m_.VP(i, j) = x; });
    product<false, true>(L, L, C, m_.E, m_.E, [&](int i, int j, F x) { H(i, j) = x; });
    if constexpr (kReads<Args>) {
      product<false, true>(L, L, C, m_.E, m_.gO,
                           [&](int i, int j, F x) { m_.delta(i, j) = j >= i ? x : F(0); });
      product<false, true>(L, K, C, m_.gO, m_.R, [&](int i, int j, F x) { m_.OR(i, j) = x; });
      product<false, false>(L, K, K, m_.Q, c.U, [&](int i, int j, F x) { m_.QU(i, j) = x; });
      if (c.Sigma.data != nullptr)
        product<false, false>(L, K, K, m_.Q, c.Sigma, [&](int i, int j, F x) { m_.QS(i, j) = x; });
      each(L, K, [&](int t, int k) { c.gain(t, k) = F(c.kept[t]) * c.X(t, k); });
    }
    const double kept = c.kept[L - 1];
    double end = 0.0;
    each(K, C, [&](int i, int j) { end += kept * double(m_.gR(i, j)) * double(m_.R(i, j)); });
    each(K, K, [&](int i, int j) {
      const double apart = double(c.U(i, j)) - double(c.stationary(i, j));
      end += 2.0 * kept * kept * double(m_.gU(i, j)) * apart;
    });
    return team_sum(end);
  }

  // gl/2 (E E' - C I) at (i, j)
  __device__ F evidence(int i, int j) const {
    const double h = double(m_.chunk.S(i, j));
    return F(0.5 * gl_ * (i == j ? h - double(C_) : h));
  }

  // D^, D^ R', the gradient of the mean before the chunk, and I. Leaves the team synchronised.
  __device__ __noinline__ void reverse_columns() const {
    const StationaryChunk<F>& c = m_.chunk;
    const int L = L_, K = K_, C = C_;
    const Mat<F> weighted = m_.cross;  // is free
    if constexpr (kReads<Args>) {
      product<false, false>(L, C, L, m_.inside, m_.gO,
                            [&](int i, int j, F x) { m_.E(i, j) = x - F(gl_) * m_.E(i, j); });
      each(L, L, [&](int s, int t) {
        const F x = F(m_.slope[t]) * m_.inside(s, t), B = m_.delta(s, t);
        m_.delta(s, t) = B - F(2) * x;
        weighted(s, t) = x - B;
      });
    } else {
      each(L, C, [&](int i, int j) { m_.E(i, j) *= -F(gl_); });
    }
    each(L, K, [&](int i, int j) {  // T in N's place
      const F n = m_.N(i, j), p = m_.PU(i, j);
      m_.N(i, j) = n - F(2) * p;
      m_.PU(i, j) = p - n;
    });
    sync();
    product<true, false>(L, C, L, c.V, m_.E, [&](int i, int j, F x) { m_.D(i, j) = x; });
    product<false, false>(L, C, K, m_.VP, m_.gR, [&](int i, int j, F x) { m_.D(i, j) += x; });
    product<false, true>(L, L, K, m_.PU, c.P,
                         [&](int i, int j, F x) { m_.inner(i, j) = evidence(i, j) + x; });
    product<true, false>(L, K, L, c.V, m_.N, [&](int i, int j, F x) { m_.dB(i, j) = x; });
    if constexpr (kReads<Args>) {
      product<false, true>(L, L, L, m_.inside, weighted,
                           [&](int i, int j, F x) { m_.inner(i, j) += x; });
      product<true, false>(L, L, L, c.V, m_.delta, [&](int i, int j, F x) {
        m_.dA(i, j) = j >= i ? x : F(0);
        m_.new_dA(i, j) = j >= i ? c.renewal(i, j) * x : F(0);
      });
      product<false, false>(L, K, L, m_.delta, m_.moved_Q,
                            [&](int i, int j, F x) { m_.M(i, j) = x; });
    }
    sync();
    const F kept = F(c.kept[L - 1]);
    product<false, true>(L, K, C, m_.D, m_.R, [&](int i, int j, F x) { m_.DR(i, j) = x; });
    product<true, false>(K, C, L, m_.moved, m_.D,
                         [&](int i, int j, F x) { m_.gR(i, j) = kept * m_.gR(i, j) - x; });
    if constexpr (kReads<Args>) {
      product<true, false>(K, C, L, m_.moved_Q, m_.gO,
                           [&](int i, int j, F x) { m_.gR(i, j) += x; });
      product<false, false>(L, K, L, m_.new_dA, m_.Q,
                            [&](int i, int j, F x) { m_.fresh(i, j) = x; });
    }
    each(L, K, [&](int i, int j) {
      const F t = kept * m_.N(i, j);
      m_.M(i, j) = kReads<Args> ? m_.M(i, j) + t : t;
    });
    store(args_.d_values, item_.row, first_, 0, L, C, m_.D);
    symmetrise(L, m_.inner);
  }

  // The rest: the gradients of addresses, queries, noise, retentions, Sigma and of the covariance
  // before the chunk. Leaves the team synchronised.
  __device__ __noinline__ void reverse_factors(double end) const {
    const StationaryChunk<F>& c = m_.chunk;
    const int L = L_, K = K_;
    product<false, false>(L, K, L, m_.inner, m_.Y, [&](int i, int j, F x) {
      const F M = m_.M(i, j);
      m_.IY(i, j) = M + x;
      m_.PU(i, j) = M + F(2) * x;
    });
    product<true, false>(L, L, L, c.V, m_.inner, [&](int i, int j, F x) { m_.room(i, j) = x; });
    sum_rows();
    sync();
    const Mat<F> new_dS = m_.inner, whitened = m_.N, scaled = m_.VP, sloped = m_.M;
    product<false, false>(L, L, L, m_.room, c.V, [&](int i, int j, F x) {
      m_.dS(i, j) = x;
      new_dS(i, j) = c.renewal(i, j) * x;
    });
    product<true, false>(L, K, L, c.V, m_.PU, [&](int i, int j, F x) { whitened(i, j) = x; });
    if constexpr (kReads<Args>)
      each(L, K, [&](int t, int k) {
        scaled(t, k) = F(c.fresh[t] * m_.slope[t]) * m_.Q(t, k);
        sloped(t, k) = F(m_.slope[t]) * m_.moved_Q(t, k);
      });
    sync();
    const Mat<F> dW = m_.PU, twice = m_.DR;
    product<false, false>(L, K, K, whitened, c.U,
                          [&](int i, int j, F x) { dW(i, j) = F(c.kept[i]) * (x - m_.DR(i, j)); });
    product<false, false>(L, K, L, new_dS, c.W, [&](int i, int j, F x) {
      F sum = c.renewal(i, L - 1) * m_.dB(i, j) + x;
      if constexpr (kReads<Args>) sum += m_.fresh(i, j);
      m_.fresh(i, j) = sum;
      twice(i, j) = sum + x;
    });
    if constexpr (kReads<Args>) {
      product<true, false>(L, K, L, m_.dA, c.gain, [&](int i, int j, F x) {
        const double b = c.kept[i];
        x += m_.OR(i, j) + F(2.0 * b * m_.slope[i]) * m_.QU(i, j);
        m_.OR(i, j) = F(b) * x;
      });
      product<true, false>(L, K, L, m_.new_dA, c.W,
                           [&](int i, int j, F x) { m_.QU(i, j) = x + F(2) * scaled(i, j); });
    }
    sum_squares();
    sync();
    through_stationary(twice, dW);
    if constexpr (kReads<Args>) through_stationary(m_.QU, m_.OR);
    if (c.Sigma.data != nullptr) {
      const F fresh = F(c.fresh[L - 1]);
      product<true, false>(K, K, L, c.W, m_.fresh,
                           [&](int i, int j, F x) { m_.dSigma(i, j) += fresh * m_.gU(i, j) + x; });
      if constexpr (kReads<Args>)
        product<true, false>(K, K, L, m_.Q, scaled,
                             [&](int i, int j, F x) { m_.dSigma(i, j) += x; });
    }
    for (int t = thread(); t < L; t += threads()) {
      store_scalar(args_.d_noise_var, item_.row, first_ + t,
                   c.counts[t] ? double(m_.dS(t, t)) : 0.0);
      store_retention(t, end);
    }
    sync();
    const F kept = c.moved(L - 1, L - 1);
    product<true, false>(K, K, L, m_.Y, m_.IY,
                         [&](int i, int j, F x) { m_.gU(i, j) = kept * m_.gU(i, j) + x; });
    if constexpr (kReads<Args>) {
      product<true, false>(K, K, L, m_.moved_Q, sloped,
                           [&](int i, int j, F x) { m_.gU(i, j) += x; });
      store(args_.d_queries, item_.row, first_, 0, L, K, m_.OR);
    }
    store(args_.d_weights, item_.row, first_, 0, L, K, dW);
    sync();
    symmetrise(K, m_.gU);
  }

  // to += x Sigma. Not synchronised.
  __device__ void through_stationary(Mat<F> x, Mat<F> to) const {
    const Mat<F> Sigma = m_.chunk.Sigma;
    if (Sigma.data != nullptr) {
      product<false, false>(L_, K_, K_, x, Sigma, [&](int i, int j, F y) { to(i, j) += y; });
    } else {
      each(L_, K_, [&](int i, int j) { to(i, j) += x(i, j); });
    }
  }

  // What the retentions get through the gain, the means and the variances of reads: a warp for each
  // step. Not synchronised.
  __device__ __noinline__ void sum_rows() const {
    const StationaryChunk<F>& c = m_.chunk;
    for (int t = warp(); t < L_; t += warps()) {
      double prior = 0.0, tail = 0.0, mean = 0.0;
      for (int k = lane(); k < K_; k += 32) {
        prior += double(m_.dB(t, k)) * (double(c.X(t, k)) - double(c.WS(t, k)));
        tail += double(m_.dB(t, k)) * double(c.WS(t, k));
        mean -= double(m_.DR(t, k)) * double(m_.moved(t, k));
        if constexpr (kReads<Args>) {
          const double slope = 2.0 * c.kept[t] * c.kept[t] * m_.slope[t];
          mean += double(m_.OR(t, k)) * double(m_.moved_Q(t, k));
          mean += slope * double(m_.Q(t, k)) * (double(m_.QU(t, k)) - double(m_.QS(t, k)));
        }
      }
      prior = warp_sum(prior);
      tail = warp_sum(tail);
      mean = warp_sum(mean);
      if (lane() == 0) {
        m_.through[t] = c.kept[L_ - 1] * c.kept[t] * prior;
        m_.tail[t] = tail;
        m_.from_here[t] = m_.through[t] + mean;
      }
    }
  }

  // What they get through the L x L matrices: to from_here what moves, to row s of `room` the sums
  // from step t on of what is new between s and t. Not synchronised.
  __device__ __noinline__ void sum_squares() const {
    const StationaryChunk<F>& c = m_.chunk;
    for (int t = warp(); t < L_; t += warps()) {
      double sum = 0.0;
      for (int s = lane(); s < L_; s += 32) {
        const double b = c.kept[s] * c.kept[t];
        sum +=
            2.0 * b * double(m_.dS(min(s, t), max(s, t))) * double(c.drift(min(s, t), max(s, t)));
        if constexpr (kReads<Args>) {
          if (s <= t) sum += b * double(m_.dA(s, t)) * double(m_.drift(s, t));
          if (s >= t) sum += b * double(m_.dA(t, s)) * double(m_.drift(t, s));
        }
      }
      sum = warp_sum(sum);
      if (lane() == 0) m_.from_here[t] += sum;
    }
    for (int s = thread(); s < L_; s += threads()) {
      double later = double(c.between(s, L_ - 1)) * m_.tail[s];
      for (int t = L_ - 1; t > s; --t) {
        double x = 2.0 * double(m_.dS(s, t)) * double(c.settled(s, t));
        if constexpr (kReads<Args>) x += double(m_.dA(s, t)) * double(m_.settled(s, t));
        later += double(c.between(s, t)) * x;
        m_.room(s, t) = F(later);
      }
    }
  }

  // The gradient of the retention of step t, by one thread.
  __device__ void store_retention(int t, double end) const {
    const StationaryChunk<F>& c = m_.chunk;
    for (int s = 0; s < L_; ++s) {
      end += m_.through[s];
      if (s >= t) end += m_.from_here[s];
      if (s < t) end += double(m_.room(s, t));
    }
    store_scalar(args_.d_retention, item_.row, first_ + t,
                 c.counts[t] ? end / c.retention[t] : 0.0);
  }

  const Args& args_;
  const Item item_;
  const int64_t b_;
  const int steps_, K_, C_;
  const StationaryAdjointBuffers<F> m_;
  const KeptStates<F> states_;
  const double limit_, gl_;
  int64_t first_ = 0;
  int L_ = 0;
};

}  // namespace kanerva::cuda
