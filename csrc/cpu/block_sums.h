// The sums over the steps of a long episode into few slots, by all threads.
//
// Products of a block of steps are formed in float32; blocks are added up in float64, so that the
// rounding of a sum does not grow with the episode. A segment of blocks belongs to one thread, and
// segments are added in order: results do not depend on the number of threads.
#pragma once

#include "matrices.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

// G = W' diag(1/n) W, H = W' diag(1/n) Z and sum |z_t|^2 / n_t.
class BlockSums {
 public:
  BlockSums(Workspace::Scope& scope, const Matrix<double>& G, const Matrix<double>& H)
      : scope_(scope), G_(G), H_(H) {}

  double square() const { return square_; }

  void add_up(const View& weights, const View& values, int64_t b, const Episode& e,
              const Executor& executor) {
    const int64_t K = H_.rows, C = H_.columns;
    const int64_t blocks = (e.steps + kBlockSteps - 1) / kBlockSteps;
    const int64_t segments = std::min(blocks, kSegments);
    double* squares = scope_.take<double>(segments);
    const Matrix<double> all_G(scope_, segments * K, K), all_H(scope_, segments * K, C);
    executor.for_each(segments, [&](int64_t s) {
      const Matrix<double> G = part(all_G, s), H = part(all_H, s);
      G.zero();
      H.zero();
      squares[s] = 0.0;
      Workspace::Scope scope(Workspace::of_thread());
      Block room(scope, K, C);
      const int64_t last = (s + 1) * blocks / segments;
      for (int64_t block = s * blocks / segments; block < last; ++block) {
        const int64_t first = block * kBlockSteps;
        room.load(weights, values, b, e, first, std::min(kBlockSteps, e.steps - first));
        squares[s] += room.add_to(G, H);
      }
    });
    G_.zero();
    H_.zero();
    for (int64_t s = 0; s < segments; ++s) {
      axpy(1.0, part(all_G, s), G_);
      axpy(1.0, part(all_H, s), H_);
      square_ += squares[s];
    }
    mirror(G_);
  }

 private:
  static constexpr int64_t kBlockSteps = 256;  // of a float32 product
  static constexpr int64_t kSegments = 16;     // at most

  Matrix<double> part(const Matrix<double>& all, int64_t s) const {
    return block_of(all, s * H_.rows, 0, H_.rows, all.columns);
  }

  // A block of steps in float32, and its products.
  struct Block {
    Matrix<float> W, Wn, Z, G, H;
    float* inverse;  // 1 / n, rounded: all sums have the same one, for their difference cancels

    Block(Workspace::Scope& scope, int64_t K, int64_t C)
        : W(scope, kBlockSteps, K),
          Wn(scope, kBlockSteps, K),
          Z(scope, kBlockSteps, C),
          G(scope, K, K),
          H(scope, K, C),
          inverse(scope.take<float>(kBlockSteps)) {}

    void load(const View& weights, const View& values, int64_t b, const Episode& e, int64_t first,
              int64_t steps) {
      W.rows = Wn.rows = Z.rows = steps;
      kanerva::KANERVA_ISA::load(weights, b, Rows{e.index, first}, W);
      kanerva::KANERVA_ISA::load(values, b, Rows{e.index, first}, Z);
      using V = Simd<float>;
      for (int64_t t = 0; t < steps; ++t) {
        inverse[t] = float(1.0 / e.noise[first + t]);
        for (int64_t k = 0; k < W.columns; k += V::width)
          V::store(Wn[t] + k, V::broadcast(inverse[t]) * V::load(W[t] + k));
      }
    }

    // Returns this block's share of the squares.
    double add_to(const Matrix<double>& sum_G, const Matrix<double>& sum_H) {
      product_transposed(serial_executor(), Wn, W, G, Store::set, Part::upper);
      product_transposed(Wn, Z, H);
      add(G, sum_G);
      add(H, sum_H);
      double square = 0.0;
      for (int64_t t = 0; t < Z.rows; ++t)
        square += double(inverse[t]) * row_dot(Z.columns, Z[t], Z[t]);
      return square;
    }

    static void add(const Matrix<float>& x, const Matrix<double>& sum) {
      using V = Simd<double>;
      for (int64_t i = 0; i < x.rows; ++i)
        for (int64_t j = 0; j < x.columns; j += V::width)
          V::store(sum[i] + j, V::load(sum[i] + j) + V::load_as(x[i] + j));
    }
  };

  Workspace::Scope& scope_;
  const Matrix<double> G_, H_;
  double square_ = 0.0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
