// The adjoint of the write of one memory, by a team, in closed form, chunk by chunk. The algebra is
// that of ../cpu/write_adjoint.h; add_reads() is what the reads of causal_scan add to it.
#pragma once

#include "write_block.cuh"

namespace kanerva::cuda {

template <class F>
struct AdjointBuffers {
  double *d_decay, *d_noise;  // L: adjoints of b_t and of n_t
  Chunk<F> chunk;
  Mat<F> inner, H, room;           // L x L
  Mat<F> Y, N, PU, DR;             // L x K
  Mat<F> D, E;                     // L x C
  Mat<F> gU, R, gR;                // K x K, K x C, K x C
  double* slope;                   // L: h; only with `reads`, like the next
  Mat<F> d_reads, mixed;           // L x C, L x L: gO and B
  Mat<F> keep, half, cov, before;  // K x K thrice, K x C; only with `robust`

  __host__ __device__ AdjointBuffers(Arena& arena, int L, int K, int C, bool reads, bool robust)
      : d_decay(arena.take<double>(L)),
        d_noise(arena.take<double>(L)),
        chunk(arena, L, K),
        inner(arena.matrix<F>(L, L)),
        H(arena.matrix<F>(L, L)),
        room(arena.matrix<F>(L, L)),
        Y(arena.matrix<F>(L, K)),
        N(arena.matrix<F>(L, K)),
        PU(arena.matrix<F>(L, K)),
        DR(arena.matrix<F>(L, K)),
        D(arena.matrix<F>(L, C)),
        E(arena.matrix<F>(L, C)),
        gU(arena.matrix<F>(K, K)),
        R(arena.matrix<F>(K, C)),
        gR(arena.matrix<F>(K, C)),
        slope(reads ? arena.take<double>(L) : nullptr),
        d_reads(reads ? arena.matrix<F>(L, C) : Mat<F>{nullptr, 0}),
        mixed(reads ? arena.matrix<F>(L, L) : Mat<F>{nullptr, 0}),
        keep(robust ? arena.matrix<F>(K, K) : Mat<F>{nullptr, 0}),
        half(robust ? arena.matrix<F>(K, K) : Mat<F>{nullptr, 0}),
        cov(robust ? arena.matrix<F>(K, K) : Mat<F>{nullptr, 0}),
        before(robust ? arena.matrix<F>(K, C) : Mat<F>{nullptr, 0}) {}
};

// Segments of chunks: a state is kept at the start of each segment and, inside the one that is
// being reversed, of each chunk.
struct Segments {
  int64_t chunks, length, count;
  __host__ __device__ Segments(int64_t T, int steps) {
    chunks = (T + steps - 1) / steps;
    length = 1;
    while (length * length < chunks) ++length;
    count = chunks > 0 ? (chunks + length - 1) / length : 0;
  }
  __host__ __device__ int64_t states() const { return chunks > 1 ? count + length : 0; }
};

template <class F, class Args>
class Adjoint {
 public:
  __device__ Adjoint(const Args& args, const Item& item, int steps, Arena arena, char* states,
                     bool robust, bool use_sqrt, double limit)
      : args_(args),
        item_(item),
        b_(item.state),
        steps_(steps),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        m_(arena, steps, K_, C_, kReads<Args>, robust),
        states_(reinterpret_cast<F*>(states)),
        robust_(robust),
        use_sqrt_(use_sqrt),
        limit_(limit),
        gl_(args.grad_log_evidence.data != nullptr ? scalar(args.grad_log_evidence, b_) : 0.0) {}

  __device__ Outcome run() {
    load_or_zero(args_.grad_cov, b_, 0, K_, K_, m_.gU);
    load_or_zero(args_.grad_mean, b_, 0, K_, C_, m_.gR);
    sync();
    symmetrise(K_, m_.gU);
    const Segments s(item_.steps, steps_);
    Outcome outcome = load_state();
    for (int64_t i = 0; i + 1 < s.count && outcome == Outcome::done; ++i) {
      for (int64_t j = 0; j < s.length && outcome == Outcome::done; ++j)
        outcome = advance(i * s.length + j);
      keep_state(i);
    }
    for (int64_t i = s.count - 1; i >= 0 && outcome == Outcome::done; --i) {
      if (s.count > 1) outcome = i > 0 ? restore_state(i - 1) : load_state();
      const int64_t first = i * s.length;
      const int64_t last = (first + s.length < s.chunks ? first + s.length : s.chunks) - 1;
      for (int64_t j = first; j < last && outcome == Outcome::done; ++j) {
        keep_state(s.count + j - first);
        outcome = advance(j);
      }
      for (int64_t j = last; j >= first && outcome == Outcome::done; --j) {
        if (j < last) outcome = restore_state(s.count + j - first);
        if (outcome == Outcome::done) outcome = reverse(j);
      }
    }
    if (outcome != Outcome::done) return outcome;
    store(args_.d_mean, b_, 0, 0, K_, C_, m_.gR);
    store(args_.d_cov, b_, 0, 0, K_, K_, m_.gU);
    return Outcome::done;
  }

 private:
  __device__ __noinline__ Outcome load_state() {
    bool ok = true;
    if (use_sqrt_) {
      ok = load_root(args_.cov, b_, K_, m_.chunk.U, m_.R.data);
    } else {
      load_covariance(args_.cov, b_, K_, m_.chunk.U);
    }
    load(args_.mean, b_, 0, 0, K_, C_, m_.R);
    sync();
    return ok ? Outcome::done : Outcome::failed;
  }

  __device__ Mat<F> kept_cov(int64_t i) const { return {states_ + i * K_ * (K_ + C_), K_}; }
  __device__ Mat<F> kept_mean(int64_t i) const {
    return {states_ + i * K_ * (K_ + C_) + int64_t(K_) * K_, C_};
  }

  __device__ void keep_state(int64_t i) const {
    const Mat<F> U = kept_cov(i), R = kept_mean(i);
    each(K_, K_, [&](int r, int j) { U(r, j) = m_.chunk.U(r, j); });
    each(K_, C_, [&](int r, int j) { R(r, j) = m_.R(r, j); });
    sync();
  }

  __device__ Outcome restore_state(int64_t i) const {
    const Mat<F> U = kept_cov(i), R = kept_mean(i);
    each(K_, K_, [&](int r, int j) { m_.chunk.U(r, j) = U(r, j); });
    each(K_, C_, [&](int r, int j) { m_.R(r, j) = R(r, j); });
    sync();
    return Outcome::done;
  }

  __device__ __noinline__ Outcome factor(int64_t chunk) {
    const int64_t passed = chunk * steps_;
    first_ = item_.first + passed;
    L_ = int(passed + steps_ <= item_.steps ? steps_ : item_.steps - passed);
    if (!load_chunk(args_, item_.row, first_, L_, m_.chunk)) return Outcome::failed;
    if (use_sqrt_) {
      const bool ok = factor_chunk_sqrt(L_, K_, m_.chunk, hardness_, [](int) {});
      return ok ? Outcome::done : Outcome::failed;
    }
    return factor_chunk(L_, K_, m_.chunk, limit_, hardness_) ? Outcome::done : Outcome::harder;
  }

  // D = Z - W R and E = V'D, of the current state. Leaves the team synchronised.
  __device__ __noinline__ void innovations() const {
    const Chunk<F>& c = m_.chunk;
    load(args_.values, item_.row, first_, 0, L_, C_, m_.D, c.kept);
    sync();
    product<false, false>(L_, C_, K_, c.W, m_.R, [&](int i, int j, F x) { m_.D(i, j) -= x; });
    sync();
    product<false, false>(L_, C_, L_, c.V, m_.D, [&](int i, int j, F x) { m_.E(i, j) = x; });
    sync();
  }

  // The forward write of a chunk.
  __device__ __noinline__ Outcome advance(int64_t chunk) {
    const Chunk<F>& c = m_.chunk;
    const Outcome outcome = factor(chunk);
    if (outcome != Outcome::done) return outcome;
    innovations();
    product<true, false>(K_, C_, L_, c.P, m_.E, [&](int i, int j, F x) { m_.R(i, j) += x; });
    if (!use_sqrt_) downdate(L_, K_, c);
    sync();
    return Outcome::done;
  }

  // gl/2 (b E E' - C I) at (i, j)
  __device__ F evidence(int i, int j) const {
    const double h = m_.chunk.decay[i > j ? i : j] * double(m_.H(i, j));
    return F(0.5 * gl_ * (i == j ? h - double(C_) : h));
  }

  // The adjoint of a chunk at its starting state: gU and gR become those of that state.
  __device__ __noinline__ Outcome reverse(int64_t chunk) {
    const Chunk<F>& c = m_.chunk;
    const int K = K_, C = C_;
    if (use_sqrt_) {  // the root is consumed: the covariance itself is needed as well
      product<true, false>(K, K, K, c.U, c.U, [&](int i, int j, F x) { m_.cov(i, j) = x; });
      sync();
    }
    const Mat<F> U = use_sqrt_ ? m_.cov : c.U;
    const Outcome outcome = factor(chunk);
    if (outcome != Outcome::done) return outcome;
    const int L = L_;
    const bool keeps = robust_ && hardness_ > kHardForSubtracting;
    for (int t = thread(); t < L; t += threads()) m_.d_decay[t] = 0.0;
    if (args_.decay.data != nullptr) undecay(U);
    if constexpr (kReads<Args>) load_read_gradients();
    innovations();
    const Mat<F> G = c.X;  // X is free from here on
    product<true, false>(L, K, L, c.V, c.P, [&](int i, int j, F x) { G(i, j) = x; });
    product<false, false>(L, K, L, c.V, c.W, [&](int i, int j, F x) { m_.Y(i, j) = x; });
    product<false, true>(L, K, C, m_.E, m_.gR, [&](int i, int j, F x) { m_.N(i, j) = x; });
    product<false, false>(L, K, K, c.P, m_.gU, [&](int i, int j, F x) { m_.PU(i, j) = x; });
    product<false, true>(L, L, C, m_.E, m_.E, [&](int i, int j, F x) { m_.H(i, j) = x; });
    if constexpr (kReads<Args>) mix_read_gradients();
    sync();
    product<false, false>(L, C, K, G, m_.gR, [&](int i, int j, F x) { m_.D(i, j) = x; });
    each(L, C, [&](int t, int j) { m_.E(t, j) *= F(gl_ * c.decay[t]); });
    product<false, true>(L, L, K, m_.PU, c.P,
                         [&](int i, int j, F x) { m_.inner(i, j) = evidence(i, j) + x; });
    product<false, true>(L, L, K, c.P, m_.N, [&](int i, int j, F x) { m_.room(i, j) = x; });
    sync();
    product<true, false>(L, C, L, c.V, m_.E, [&](int i, int j, F x) { m_.D(i, j) -= x; });
    each(L, L, [&](int i, int j) { m_.inner(i, j) -= F(0.5) * (m_.room(i, j) + m_.room(j, i)); });
    sync();  // D is dZ
    product<false, true>(L, K, C, m_.D, m_.R, [&](int i, int j, F x) { m_.DR(i, j) = x; });
    if (keeps) {
      update_keeping();
    } else {
      product<true, false>(K, C, L, c.W, m_.D, [&](int i, int j, F x) { m_.gR(i, j) -= x; });
    }
    // N becomes N - 2 P gU, then with I^ Y on top what dU (unless kept) and dW are made of.
    each(L, K, [&](int i, int j) { m_.N(i, j) -= F(2) * m_.PU(i, j); });
    sync();
    product<false, false>(L, K, L, m_.inner, m_.Y, [&](int i, int j, F x) {
      m_.PU(i, j) = m_.N(i, j) + x;
      m_.N(i, j) += F(2) * x;
    });
    product<true, false>(L, L, L, c.V, m_.inner, [&](int i, int j, F x) { m_.room(i, j) = x; });
    sync();
    if (!keeps) {
      add_symmetric([&](auto add) { product<true, false>(K, K, L, m_.Y, m_.PU, add); });
    }
    product<true, false>(L, K, L, c.V, m_.N, [&](int i, int j, F x) { m_.PU(i, j) = x; });
    sync();
    product<false, false>(L, K, K, m_.PU, U,
                          [&](int i, int j, F x) { m_.N(i, j) = x - m_.DR(i, j); });
    sync();
    for (int t = thread(); t < L; t += threads()) {
      double dn = 0.0;
      for (int j = 0; j < L; ++j) dn += double(m_.room(t, j)) * double(c.V(j, t));
      m_.d_noise[t] = dn;
      // b_t in the evidence
      if (c.kept[t]) m_.d_decay[t] -= 0.5 * gl_ * (double(m_.H(t, t)) - double(C) / c.decay[t]);
    }
    if constexpr (kReads<Args>) {
      sync();
      add_reads(U, keeps || use_sqrt_);
    }
    store(args_.d_values, item_.row, first_, 0, L, C, m_.D);
    store(args_.d_weights, item_.row, first_, 0, L, K, m_.N);
    for (int t = thread(); t < L; t += threads()) store_noise(t);
    sync();
    if (args_.decay.data != nullptr) store_decay();
    sync();
    return Outcome::done;
  }

  // gU += the symmetric part of the product that `multiply` hands, element by element, to the
  // function it is given. Leaves the team synchronised.
  template <class Multiply>
  __device__ void add_symmetric(Multiply multiply) const {
    const Mat<F> gU = m_.gU;
    multiply([&](int i, int j, F x) { gU(i, j) += x; });
    sync();
    symmetrise(K_, gU);
  }

  // gU and gR where J' = I - Y'P is formed, because subtracting what the chunk overwrites cancels.
  __device__ __noinline__ void update_keeping() const {
    const Chunk<F>& c = m_.chunk;
    const int L = L_, K = K_, C = C_;
    const Mat<F> J = m_.keep;
    product<true, false>(K, K, L, m_.Y, c.P,
                         [&](int i, int j, F x) { J(i, j) = (i == j ? F(1) : F(0)) - x; });
    each(K, C, [&](int i, int j) { m_.before(i, j) = m_.gR(i, j); });
    sync();
    product<false, false>(K, C, K, J, m_.before, [&](int i, int j, F x) { m_.gR(i, j) = x; });
    sync();
    product<true, false>(K, C, L, m_.Y, m_.E, [&](int i, int j, F x) { m_.gR(i, j) += x; });
    product<false, false>(K, K, K, J, m_.gU, [&](int i, int j, F x) { m_.half(i, j) = x; });
    product<false, true>(L, K, K, m_.N, J, [&](int i, int j, F x) { c.X(i, j) = x; });
    sync();
    if (gl_ != 0.0) {
      each(L, L, [&](int i, int j) { m_.room(i, j) = evidence(i, j); });
      sync();
      product<false, false>(L, K, L, m_.room, m_.Y, [&](int i, int j, F x) { c.X(i, j) += x; });
      sync();
    }
    product<false, true>(K, K, K, m_.half, J, [&](int i, int j, F x) { m_.gU(i, j) = x; });
    sync();
    add_symmetric([&](auto add) { product<true, false>(K, K, L, m_.Y, c.X, add); });
  }

  // The gradient of the noise of step t, and its share in that of b_t.
  __device__ void store_noise(int t) const {
    const Chunk<F>& c = m_.chunk;
    const double dn = m_.d_noise[t];
    store_scalar(args_.d_noise_var, item_.row, first_ + t, c.kept[t] ? dn * c.decay[t] : 0.0);
    if (c.kept[t]) m_.d_decay[t] += dn * c.noise[t] / c.decay[t];
  }

  // gO and h = gv / b of the chunk. Not synchronised.
  __device__ __noinline__ void load_read_gradients() const {
    if (args_.grad_reads.data != nullptr) {
      load(args_.grad_reads, item_.row, first_, 0, L_, C_, m_.d_reads);
    } else {
      each(L_, C_, [&](int i, int j) { m_.d_reads(i, j) = F(0); });
    }
    const View& var = args_.grad_read_var;
    for (int t = thread(); t < L_; t += threads())
      m_.slope[t] =
          var.data == nullptr ? 0.0 : scalar(var, item_.row, first_ + t) / m_.chunk.decay[t];
  }

  // B, from the innovations E. Not synchronised.
  __device__ __noinline__ void mix_read_gradients() const {
    product<false, true>(L_, L_, C_, m_.d_reads, m_.E,
                         [&](int i, int j, F x) { m_.mixed(i, j) = j <= i ? x : F(0); });
  }

  // Adds the reads of the chunk to the adjoints of its values (D), addresses (N), noise and decay
  // and of the state before it, and stores those of the queries. A = tril(Q P'), B = tril(gO E');
  // Q~ = Q - A Y is what the chunk leaves of the queries.
  //   X = gO R0' + B P,  dQ = X + 2 h Q~ U0,  dR0 += Q~' gO,  dU0 += sym(Q~' (h Q~ + B Y))
  //   dZ += F^-T A' gO,  dW += F^-T ((B - 2 h A)' Q~ U0 - A' X),  dn += diag(F^-T A' (h A - B)
  //   F^-1)
  // These are the formulas of docs/algorithms.md with U0 Q~' for U0 Q' - P'A', which cancels. Lies
  // in what the write has used. Leaves the team synchronised.
  __device__ __noinline__ void add_reads(Mat<F> U, bool keeps) const {
    const Chunk<F>& c = m_.chunk;
    const int L = L_, K = K_, C = C_;
    const Mat<F> A = m_.room, B = m_.mixed, gO = m_.d_reads, rest = m_.DR;
    load(args_.queries, item_.row, first_, 0, L, K, c.X);
    sync();
    product<false, true>(L, L, K, c.X, c.P,
                         [&](int i, int j, F x) { A(i, j) = j <= i ? x : F(0); });
    sync();
    if (keeps) {
      pass_queries(c.X, rest);
    } else {
      product<false, false>(L, K, L, A, m_.Y,
                            [&](int i, int j, F x) { rest(i, j) = c.X(i, j) - x; });
    }
    sync();
    product<false, false>(L, K, K, rest, U, [&](int i, int j, F x) { m_.PU(i, j) = x; });
    product<false, true>(L, K, C, gO, m_.R, [&](int i, int j, F x) { c.W(i, j) = x; });
    product<false, false>(L, K, L, B, c.P, [&](int i, int j, F x) { c.W(i, j) += x; });
    product<true, false>(L, C, L, A, gO, [&](int i, int j, F x) { m_.E(i, j) = x; });
    each(L, L, [&](int i, int j) {
      const F x = F(m_.slope[i]) * A(i, j);
      m_.inner(i, j) = B(i, j) - F(2) * x;
      m_.H(i, j) = x - B(i, j);
    });
    sync();
    if (args_.decay.data != nullptr) {
      for (int t = warp(); t < L; t += warps()) {  // read_var_t b_t = q'U0 q~
        double dot = 0.0;
        for (int k = lane(); k < K; k += 32) dot += double(c.X(t, k)) * double(m_.PU(t, k));
        dot = warp_sum(dot);
        if (lane() == 0) m_.d_decay[t] -= m_.slope[t] * dot / c.decay[t];
      }
      sync();
    }
    product<true, false>(L, K, L, m_.inner, m_.PU, [&](int i, int j, F x) { c.X(i, j) = x; });
    product<true, false>(L, K, L, A, c.W, [&](int i, int j, F x) { c.X(i, j) -= x; });
    product<true, false>(L, L, L, A, m_.H, [&](int i, int j, F x) { c.S(i, j) = x; });
    product<false, false>(L, K, L, B, m_.Y,
                          [&](int i, int j, F x) { c.P(i, j) = x + F(m_.slope[i]) * rest(i, j); });
    sync();
    product<true, false>(L, K, L, c.V, c.X, [&](int i, int j, F x) { m_.N(i, j) += x; });
    product<true, false>(L, C, L, c.V, m_.E, [&](int i, int j, F x) { m_.D(i, j) += x; });
    product<true, false>(L, L, L, c.V, c.S, [&](int i, int j, F x) { A(i, j) = x; });
    product<true, false>(K, C, L, rest, gO, [&](int i, int j, F x) { m_.gR(i, j) += x; });
    each(L, K, [&](int i, int j) { c.W(i, j) += F(2.0 * m_.slope[i]) * m_.PU(i, j); });
    store(args_.d_queries, item_.row, first_, 0, L, K, c.W);
    add_symmetric([&](auto add) { product<true, false>(K, K, L, rest, c.P, add); });
    for (int t = thread(); t < L; t += threads())
      for (int j = 0; j < L; ++j) m_.d_noise[t] += double(A(t, j)) * double(c.V(j, t));
  }

  // Q~ step by step, from that of a query back to the first: as accurate as the recursion where
  // Q - A Y cancels. A warp for each query.
  __device__ void pass_queries(Mat<F> Q, Mat<F> rest) const {
    const Chunk<F>& c = m_.chunk;
    for (int t = warp(); t < L_; t += warps()) {
      for (int k = lane(); k < K_; k += 32) rest(t, k) = Q(t, k);
      for (int i = t; i >= 0; --i) {
        F gain = 0;
        for (int k = lane(); k < K_; k += 32) gain += c.P(i, k) * rest(t, k);
        gain = warp_sum(gain) * c.V(i, i);
        for (int k = lane(); k < K_; k += 32) rest(t, k) -= gain * c.W(i, k);
      }
    }
  }

  // b_t is a product: gamma_s enters every b_t with t >= s.
  __device__ void store_decay() const {
    if (thread() != 0) return;
    double later = 0.0;
    for (int t = L_ - 1; t >= 0; --t) {
      later += m_.d_decay[t] * m_.chunk.decay[t];
      const bool kept = m_.chunk.kept[t];
      store_scalar(args_.d_decay, item_.row, first_ + t,
                   kept ? later / scalar(args_.decay, item_.row, first_ + t) : 0.0);
    }
  }

  // gU of the decayed covariance -> of the undecayed one, and its share in the adjoint of b.
  __device__ __noinline__ void undecay(Mat<F> U) const {
    const Chunk<F>& c = m_.chunk;
    const double b = c.decay[L_ - 1];
    double dot = 0.0;
    product<true, false>(K_, K_, L_, c.P, c.P, [&](int i, int j, F x) {
      dot += double(m_.gU(i, j)) * double(U(i, j) - x);
    });
    dot = team_sum(dot);
    each(K_, K_, [&](int i, int j) { m_.gU(i, j) *= F(1.0 / b); });
    if (thread() == 0) m_.d_decay[L_ - 1] -= dot / (b * b);
    sync();
  }

  const Args& args_;
  const Item item_;
  const int64_t b_;
  const int steps_, K_, C_;
  const AdjointBuffers<F> m_;
  F* states_;
  const bool robust_, use_sqrt_;
  const double limit_, gl_;
  double hardness_ = 0.0;
  int64_t first_ = 0;
  int L_ = 0;
};

}  // namespace kanerva::cuda
