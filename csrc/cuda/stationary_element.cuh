// What a segment of steps does to whatever memory it starts from: an element of the associative
// scan over time of Saerkkae and Garcia-Fernandez (Temporal Parallelization of Bayesian Smoothers,
// 2021), for a memory that moves, by a block. In float64 throughout. The algebra and its names are
// those of ../cpu/stationary_element.h:
//   H = F^-1 D_b W A,  E = F^-1 (Z - D_b W b),
//   A <- b_L A - P'H,  b <- b_L b + P'E,  C <- b_L^2 C + h_L Sigma - P'P,  J += H'H,  eta += H'E
// and on a belief R, U = L L' with I + L'J L = G G', V = L G'^-1 and x = eta - J R,
//   R <- A (R + V V'x) + b,  U <- A V (A V)' + C,  T = A - A V V'J,  y = x - J V V'x
#pragma once

#include "register_factor.cuh"
#include "stationary_segments.cuh"

namespace kanerva::cuda {

struct ElementBuffers {
  StationaryChunk<double> chunk;  // U is C
  Mat<double> A, J;               // K x K
  Mat<double> b, eta;             // K x C
  Mat<double> M, D, E;            // L x K: D_b W A; L x C twice

  __host__ __device__ ElementBuffers(Arena& arena, int L, int K, int C, bool identity)
      : chunk(arena, L, K, identity, false),
        A(arena.matrix<double>(K, K)),
        J(arena.matrix<double>(K, K)),
        b(arena.matrix<double>(K, C)),
        eta(arena.matrix<double>(K, C)),
        M(arena.matrix<double>(L, K)),
        D(arena.matrix<double>(L, C)),
        E(arena.matrix<double>(L, C)) {}
};

// The element of a segment, into the rooms. Leaves the block synchronised.
__device__ __noinline__ inline Outcome make_element(const BayesWriteArgs& args, const Item& item,
                                                    const SegmentPlan& plan, Arena arena,
                                                    const SegmentRooms& rooms) {
  const int K = int(args.n.K), C = int(args.n.C), steps = plan.steps;
  const ElementBuffers m(arena, steps, K, C, args.stationary_cov.data == nullptr);
  const StationaryChunk<double>& c = m.chunk;
  const double limit = cholesky_limit(plan.state);
  load_stationary(args.stationary_cov, item.dynamics, K, c);
  each(K, K, [&](int i, int j) {
    m.A(i, j) = i == j ? 1.0 : 0.0;
    m.J(i, j) = c.U(i, j) = 0.0;
  });
  each(K, C, [&](int i, int j) { m.b(i, j) = m.eta(i, j) = 0.0; });
  for (int64_t passed = 0; passed < item.steps; passed += steps) {
    const int64_t first = item.first + passed;
    const int L = int(passed + steps <= item.steps ? steps : item.steps - passed);
    if (!load_chunk(args, item.row, first, L, c)) return Outcome::failed;
    load(args.values, item.row, first, 0, L, C, m.D, c.counts);
    const bool easy = factor_chunk(L, K, c, limit, [&] {
      product<false, false>(L, C, K, c.W, m.b,
                            [&](int i, int j, double x) { m.D(i, j) -= c.kept[i] * x; });
      product<false, false>(L, K, K, c.W, m.A,
                            [&](int i, int j, double x) { m.M(i, j) = c.kept[i] * x; });
    });
    if (!easy) return Outcome::harder;
    form_gain(L, K, c);
    product<false, false>(L, C, L, c.V, m.D, [&](int i, int j, double x) { m.E(i, j) = x; });
    sync();
    product<false, false>(L, K, L, c.V, c.gain, [&](int i, int j, double x) { c.P(i, j) = x; });
    const Mat<double> H = c.W;  // is free
    product<false, false>(L, K, L, c.V, m.M, [&](int i, int j, double x) { H(i, j) = x; });
    sync();
    const double kept = c.kept[L - 1];
    product<true, false>(K, K, L, c.P, H,
                         [&](int i, int j, double x) { m.A(i, j) = kept * m.A(i, j) - x; });
    product<true, false>(K, C, L, c.P, m.E,
                         [&](int i, int j, double x) { m.b(i, j) = kept * m.b(i, j) + x; });
    product<true, false>(K, K, L, H, H, [&](int i, int j, double x) { m.J(i, j) += x; });
    product<true, false>(K, C, L, H, m.E, [&](int i, int j, double x) { m.eta(i, j) += x; });
    downdate(L, K, c);
    sync();
  }
  const int64_t place = item.state;
  const Mat<double> A = rooms.A.at(place), J = rooms.J.at(place), after = rooms.C.at(place),
                    b = rooms.b.at(place), eta = rooms.eta.at(place);
  each(K, K, [&](int i, int j) {
    A(i, j) = m.A(i, j);
    after(i, j) = c.U(i, j);
    J(i, j) = m.J(min(i, j), max(i, j));
  });
  each(K, C, [&](int i, int j) {
    b(i, j) = m.b(i, j);
    eta(i, j) = m.eta(i, j);
  });
  return Outcome::done;
}

struct BeliefBuffers {
  double* pivots;           // K; of factors that are too large for registers
  Mat<double> U, M, JL, V;  // K x K, with room for what follows in their places
  Mat<double> R, x, seen;   // K x C; not read by columns

  __host__ __device__ BeliefBuffers(Arena& arena, int K, int C)
      : pivots(K <= kMostInRegisters ? nullptr : arena.take<double>(K)),
        U(square(arena, K)),
        M(arena.matrix<double>(K, K)),
        JL(arena.matrix<double>(K, K)),
        V(square(arena, K)),
        R({arena.take<double>(int64_t(K) * C), C}),
        x({arena.take<double>(int64_t(K) * C), C}),
        seen({arena.take<double>(int64_t(K) * C), C}) {}

  // Room for the rows of a factor as well.
  __host__ __device__ static Mat<double> square(Arena& arena, int K) {
    const int ld = odd_stride(K), rows = room_of_factor(K);
    return {arena.take<double>(K * ld > rows ? int64_t(K) * ld : rows), ld};
  }
};

// to = from, both K x columns, with eight loads of a thread on their way at once. Not synchronised.
__device__ inline void copy(int K, int columns, Mat<double> from, Mat<double> to) {
  constexpr int together = 8;
  const int step = warps();
  for (int first = warp(); first < K; first += together * step) {
    for (int j = lane(); j < columns; j += 32) {
      double x[together];
#pragma unroll
      for (int u = 0; u < together; ++u) x[u] = from(min(first + u * step, K - 1), j);
#pragma unroll
      for (int u = 0; u < together; ++u)
        if (first + u * step < K) to(first + u * step, j) = x[u];
    }
  }
}

// s becomes its factor F', s = F F', with zeros below the diagonal or, kInverse, F^-1 with zeros
// above it; `room` is a square. False, in every thread, when a pivot is not positive. Expects s to
// be synchronised; leaves the block so.
template <bool kInverse>
__device__ inline bool factorise_in_place(int K, Mat<double> s, Mat<double> room, double* pivots) {
  if (pivots == nullptr) return factorise_in_registers<kInverse>(K, s, s, room.data);
  if (!factorise(K, s, kInverse ? room : Mat<double>{nullptr, 0}, pivots)) return false;
  each(K, K, [&](int i, int j) {
    s(i, j) = kInverse ? room(i, j) : j >= i ? s(i, j) / sqrt(pivots[i]) : 0.0;
  });
  sync();
  return true;
}

// The belief after the segment at `place`, in m.V and m.x, from the one before it in m.U and m.R,
// which gets its adjoint if that is wanted. False, in every thread, where a slot has more than
// `limit` times the precision with all others known than it has without. Expects the block to be
// synchronised; leaves it so.
__device__ __noinline__ inline bool apply_element(int K, int C, int64_t place,
                                                  const SegmentRooms& rooms, const BeliefBuffers& m,
                                                  double limit, bool adjoint) {
  const Mat<double> of_rooms = rooms.J.at(place), eta = rooms.eta.at(place);
  const Mat<double> J = m.M, root = m.U;
  copy(K, K, of_rooms, J);
  if (!factorise_in_place<false>(K, root, m.V, m.pivots)) return false;
  product<false, true>(K, K, K, J, root, [&](int i, int j, double x) { m.JL(i, j) = x; });
  product<false, false>(K, C, K, J, m.R,
                        [&](int i, int j, double x) { m.x(i, j) = eta(i, j) - x; });
  sync();
  product<false, false>(K, K, K, root, m.JL,
                        [&](int i, int j, double x) { m.M(i, j) = i == j ? 1.0 + x : x; });
  sync();
  const Mat<double> inverse = m.M;
  if (!factorise_in_place<true>(K, inverse, m.V, m.pivots)) return false;
  product<true, true>(K, K, K, root, inverse, [&](int i, int j, double x) { m.V(i, j) = x; });
  sync();
  bool hard = false;
  for (int k = warp(); k < K; k += warps()) {
    double sum = 0.0;
    for (int j = lane(); j < K; j += 32) sum += m.V(k, j) * m.V(k, j);
    hard = hard || !(warp_sum(sum) * of_rooms(k, k) <= limit);
  }
  const Mat<double> VJ = m.U;
  if (adjoint)
    product<false, true>(K, K, K, inverse, m.JL, [&](int i, int j, double x) { VJ(i, j) = x; });
  if (any(hard)) return false;
  const Mat<double> A = m.M, AV = m.JL;
  copy(K, K, rooms.A.at(place), A);
  product<true, false>(K, C, K, m.V, m.x, [&](int i, int j, double x) { m.seen(i, j) = x; });
  sync();
  product<false, false>(K, K, K, A, m.V, [&](int i, int j, double x) { AV(i, j) = x; });
  product<false, false>(K, C, K, m.V, m.seen, [&](int i, int j, double x) { m.R(i, j) += x; });
  if (adjoint) {
    const Mat<double> y = rooms.y.at(place);
    product<true, false>(K, C, K, VJ, m.seen,
                         [&](int i, int j, double x) { y(i, j) = m.x(i, j) - x; });
  }
  sync();
  if (adjoint) {
    const Mat<double> T = rooms.T.at(place);
    product<false, false>(K, K, K, AV, VJ, [&](int i, int j, double x) { T(i, j) = A(i, j) - x; });
  }
  const Mat<double> cov = rooms.U.at(place + 1), added = rooms.C.at(place),
                    mean = rooms.R.at(place + 1), b = rooms.b.at(place);
  product<false, true>(K, K, K, AV, AV, [&](int i, int j, double x) {
    if (j >= i) m.V(i, j) = m.V(j, i) = cov(i, j) = cov(j, i) = added(i, j) + x;
  });
  product<false, false>(K, C, K, A, m.R,
                        [&](int i, int j, double x) { m.x(i, j) = mean(i, j) = b(i, j) + x; });
  sync();
  return true;
}

struct ChainBuffers {
  Mat<double> gU, T, UT;     // K x K
  Mat<double> gR, y, moved;  // K x C; only y is read by columns

  __host__ __device__ ChainBuffers(Arena& arena, int K, int C)
      : gU(arena.matrix<double>(K, K)),
        T(arena.matrix<double>(K, K)),
        UT(arena.matrix<double>(K, K)),
        gR({arena.take<double>(int64_t(K) * C), C}),
        y(arena.matrix<double>(K, C)),
        moved({arena.take<double>(int64_t(K) * C), C}) {}
};

// The gradients m.gR, m.gU of the belief after the segment at `place` are kept, and become those of
// the belief before it: what the segment alone gives, in the rooms, and
//   gR += T'gR_in,  gU += T'gU_in T + sym(T'gR_in y')
// Leaves the block synchronised, as it expects it.
__device__ __noinline__ inline void chain_gradient(int K, int C, int64_t place,
                                                   const SegmentRooms& rooms,
                                                   const ChainBuffers& m) {
  copy(K, K, rooms.T.at(place), m.T);
  copy(K, C, rooms.y.at(place), m.y);
  sync();
  const Mat<double> gR = rooms.gR.at(place), gU = rooms.gU.at(place);
  product<true, false>(K, C, K, m.T, m.gR, [&](int i, int j, double x) { m.moved(i, j) = x; });
  product<false, false>(K, K, K, m.gU, m.T, [&](int i, int j, double x) { m.UT(i, j) = x; });
  sync();
  each(K, C, [&](int i, int j) { m.gR(i, j) = gR(i, j) + m.moved(i, j); });
  product<true, false>(K, K, K, m.T, m.UT,
                       [&](int i, int j, double x) { m.gU(i, j) = gU(i, j) + x; });
  product<false, true>(K, K, C, m.moved, m.y, [&](int i, int j, double x) { m.gU(i, j) += x; });
  sync();
  symmetrise(K, m.gU);
}

}  // namespace kanerva::cuda
