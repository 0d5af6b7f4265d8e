// The sums of a long episode over its steps, G = W' diag(1/n) W and H = W' diag(1/n) Z, in float32
// by all processors, before the team that solves with them starts (information.cuh).
//
// The lower triangle of G and all of H are cut into tiles of 128 x 128, and each tile's steps into
// depths of 16. All depths of all tiles, one after another, are dealt out evenly: a block has a run
// of them, which may end one tile and begin the next. What a block adds up for a tile is a part,
// and the parts of a tile are added in the order of their blocks, in float64: bit by bit the same
// on every run.
//
//   tile 0                tile 1                tile 2
//   |---- block 0 ---|---- block 1 ----|---- block 2 ---|---- block 3 ...
//   |part 0          |part 1|part 2    |part 3|part 4   |part 5 ...      part = tile + block
//
// A block copies 16 steps of both factors into a ring of three in shared memory. Each thread scales
// what it copied by n^-1/2 once it has landed, so that G comes out as in information.cuh, and has 8
// x 8 numbers of the tile in registers. After 256 steps they go to the part, so that no sum in
// float32 is long.
//
// Floor at (1, 65536, 512, 768): 34 tiles, 36.5 G multiply-adds, 1.2 ms in float32.
#pragma once

#include "small_factor.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

constexpr int kSumSide = 128;
constexpr int kSumDepth = 16;  // steps at a time
constexpr int kSumRing = 3;    // of them in shared memory
constexpr int kSumPart = 16;   // of them until a tile's sums go to the workspace
constexpr int kSumThreads = 256;

// Some steps in a block's shared memory, which has kSumRing of these: of both factors of a tile,
// and the scales, for the warps that copy each of them.
struct SumStage {
  float x[2][kSumDepth][kSumSide], scales[2][kSumDepth];
};

struct SumsPlan {
  int blocks = 0;          // of a memory; 0: there are no such sums
  int rows = 0, wide = 0;  // tiles of a column of G, and of a row of H
  int64_t depths = 0;      // of an episode

  __host__ __device__ int tiles() const { return rows * (rows + 1) / 2 + rows * wide; }
  __host__ __device__ int64_t total() const { return tiles() * depths; }
  __host__ __device__ int parts() const { return tiles() + blocks - 1; }
  // The first depth of a block, of all tiles', and the block that has a depth.
  __host__ __device__ int64_t first(int block) const { return total() * block / blocks; }
  __host__ __device__ int block_of(int64_t depth) const {
    return int(((depth + 1) * blocks - 1) / total());
  }
};

// By the processors that the memories leave each, two blocks on one, each with 256 steps or more.
inline SumsPlan plan_sums(const Sizes& n, const Device& device) {
  const auto tiles = [](int64_t size) { return int((size + kSumSide - 1) / kSumSide); };
  SumsPlan plan;
  if (device.shared_per_block < kSumRing * sizeof(SumStage)) return plan;
  plan.rows = tiles(n.K);
  plan.wide = tiles(n.C);
  plan.depths = (n.T + kSumDepth - 1) / kSumDepth;
  const int64_t room = 2 * int64_t(device.processors) / n.B, pieces = plan.total() / kSumPart;
  const int64_t blocks = room < pieces ? room : pieces;
  plan.blocks = int(blocks < 1 ? 1 : blocks);
  return plan;
}

// The sums of an item, in the workspace: parts and their sums of squares of scaled values; n^-1/2
// of the steps.
struct EpisodeSums {
  SumsPlan plan;
  float* parts = nullptr;     // of tiles, by rows
  double* squares = nullptr;  // one for each part; of tiles in the first row of H
  float* scales = nullptr;    // -1 where the mask leaves a step out

  EpisodeSums() = default;
  // Of memory b of those from `memory` on.
  __host__ __device__ EpisodeSums(char* memory, const SumsPlan& its_plan, int64_t T, int64_t b)
      : plan(its_plan) {
    memory += b * int64_t(bytes(plan, T));
    parts = reinterpret_cast<float*>(memory);
    memory += plan.parts() * int64_t(sizeof(float)) * kSumSide * kSumSide;
    squares = reinterpret_cast<double*>(memory);
    scales = reinterpret_cast<float*>(memory + plan.parts() * int64_t(sizeof(double)));
  }
  __device__ bool are_there() const { return plan.blocks > 0; }
  static __host__ __device__ size_t bytes(const SumsPlan& plan, int64_t T) {
    const size_t part = sizeof(float) * kSumSide * kSumSide + sizeof(double);
    return (size_t(plan.parts()) * part + size_t(T) * sizeof(float) + 15) / 16 * 16;
  }
};

// Rows and columns of tiles, of H or of G.
struct SumTile {
  int row, column;
  bool is_of_values;
};

__device__ inline SumTile sum_tile(const SumsPlan& plan, int tile) {
  int row = 0;
  for (; tile > row + plan.wide; ++row) tile -= row + 1 + plan.wide;
  return tile <= row ? SumTile{row, tile, false} : SumTile{row, tile - row - 1, true};
}

// By one thread: n^-1/2 of step t of item b.
__device__ inline void store_scale(const BayesWriteArgs& args, int64_t b, int64_t t,
                                   float* scales) {
  const bool kept = keeps_step(args.mask, b, t);
  scales[t] = kept ? float(1.0 / sqrt(scalar(args.noise_var, b, t))) : -1.0f;
}

// The parts of one block, the one of so many of an item, of kSumThreads threads.
class BlockSums {
 public:
  __device__ BlockSums(const BayesWriteArgs& args, const EpisodeSums& sums, int64_t b)
      : args_(args), plan_(sums.plan), sums_(sums), b_(b) {}

  __device__ void run(int block) {
    const int64_t end = plan_.first(block + 1);
    for (int64_t depth = plan_.first(block); depth < end;) {
      const int tile = int(depth / plan_.depths);
      const int64_t next = (tile + 1) * plan_.depths, last = next < end ? next : end;
      const int64_t before = tile * plan_.depths;
      add_up(tile, tile + block, int(depth - before), int(last - before));
      depth = last;
    }
  }

 private:
  static constexpr int kFactor = kSumDepth * kSumSide;        // numbers of a factor in a stage
  static constexpr int kStage = 2 * kFactor + 2 * kSumDepth;  // and of a stage, as below
  static constexpr int kHalf = kSumThreads / 2;
  static_assert(kStage * sizeof(float) == sizeof(SumStage));

  // What a thread copies: half of the threads of W for the rows of a tile, half of W or Z for its
  // columns; of each depth four numbers of every fourth step, and some lanes of each warp the
  // scales of its steps. So a warp waits for nothing but its own. What is not there is not read,
  // wherever these point.
  struct Source {
    const float *numbers, *scale;  // of the first step
    int64_t row;
    int columns;  // of the four
    int left;     // steps, of this one and all that follow
    bool is_aligned;
  };

  __device__ static float* ring() { return reinterpret_cast<float*>(block_memory()); }
  __device__ static int own_factor() { return block_thread() / kHalf; }
  __device__ static int own_step() { return block_thread() % kHalf >> 5; }
  __device__ static int own_column() { return 4 * lane(); }
  // Of its numbers and scales in a stage.
  __device__ static int own_numbers() {
    return own_factor() * kFactor + own_step() * kSumSide + own_column();
  }
  __device__ static int own_scales() { return 2 * kFactor + own_factor() * kSumDepth + own_step(); }

  // From `depth` of a tile on.
  __device__ Source source(const View& v, int64_t columns, int tile, int depth) const {
    const Rows rows = rows_of(v, b_, 0, 0);
    const int64_t t = int64_t(depth) * kSumDepth + own_step();
    const int64_t first = int64_t(tile) * kSumSide + own_column();
    const int64_t left = args_.n.T - t, right = columns - first;
    constexpr int64_t most = 1 << 30;
    return {rows.data + t * rows.row + first,
            sums_.scales + t + 4 * (lane() % 4),
            rows.row,
            int(right < 0 ? 0 : right < 4 ? right : 4),
            int(left < most ? left : most),
            is_aligned(rows)};
  }

  // Starts the copy of a depth to the stage there and goes on to the next.
  __device__ static void start(Source& x, int stage) {
    float* const place = ring() + (stage + own_numbers());
    if (x.is_aligned) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        copy_async<16>(place + 4 * kSumSide * i, x.numbers + 4 * i * x.row,
                       4 * i < x.left ? 4 * x.columns : 0);
    } else {
#pragma unroll 1
      for (int i = 0; i < 4; ++i)
#pragma unroll 1
        for (int e = 0; e < 4; ++e)
          copy_async<4>(place + 4 * kSumSide * i + e, x.numbers + 4 * i * x.row + e,
                        4 * i < x.left && e < x.columns ? 4 : 0);
    }
    if (lane() < 4)
      copy_async<4>(ring() + (stage + own_scales() + 4 * lane()), x.scale,
                    4 * lane() < x.left ? 4 : 0);
    x.numbers += kSumDepth * x.row;
    x.scale += kSumDepth;
    x.left -= kSumDepth;
  }

  // Scales what the thread copied; what the mask leaves out becomes zero, whatever it was. Gives
  // the sum of squares.
  __device__ static float rescale(int stage) {
    float* const place = ring() + (stage + own_numbers());
    const float* const scales = ring() + (stage + own_scales());
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float scale = scales[4 * i];
      const bool kept = scale >= 0.0f;
      float4& four = *reinterpret_cast<float4*>(place + 4 * kSumSide * i);
      float4 y = four;
      y.x = kept ? y.x * scale : 0.0f;
      y.y = kept ? y.y * scale : 0.0f;
      y.z = kept ? y.z * scale : 0.0f;
      y.w = kept ? y.w * scale : 0.0f;
      four = y;
      squares = fmaf(y.x, y.x, fmaf(y.y, y.y, fmaf(y.z, y.z, fmaf(y.w, y.w, squares))));
    }
    return squares;
  }

  // The part of a tile, over depths of it.
  __device__ void add_up(int tile, int part, int first, int last) {
    const SumTile at = sum_tile(plan_, tile);
    const bool is_diagonal = !at.is_of_values && at.row == at.column;
    const bool copies = own_factor() == 0 || !is_diagonal;
    const bool of_values = own_factor() == 1 && at.is_of_values;
    Source x =
        of_values ? source(args_.values, args_.n.C, at.column, first)
                  : source(args_.weights, args_.n.K, own_factor() == 0 ? at.row : at.column, first);
    double squares = 0.0;
    float sum[8][8] = {};
#pragma unroll
    for (int stage = 0; stage < 2; ++stage) {
      if (copies && first + stage < last) start(x, stage * kStage);
      end_copies();
    }
    int stage = 0, before = 2 * kStage;  // of this depth, and of the one before
    for (int depth = first; depth < last; ++depth) {
      wait_for_copies<1>();
      __syncwarp();
      if (copies) {
        const float more = rescale(stage);
        if (of_values) squares += double(more);
      }
      __syncthreads();
      // Every thread is done with the depth before. The last two groups are empty.
      if (copies && depth + 2 < last) start(x, before);
      end_copies();
      multiply(stage + row(), stage + (is_diagonal ? 0 : kFactor) + column(), sum);
      const int passed = depth - first + 1;
      if (passed % kSumPart == 0 || depth + 1 == last)
        flush(sums_.parts + int64_t(part) * (kSumSide * kSumSide), passed <= kSumPart, sum);
      before = stage;
      stage = stage == 2 * kStage ? 0 : stage + kStage;
    }
    if (at.is_of_values && at.row == 0) {
      squares = block_sum(squares);
      if (block_thread() == 0) sums_.squares[part] = squares;
    }
    __syncthreads();
  }

  // Of a tile a thread has rows row() to row() + 3 and 64 further, and columns likewise: a warp
  // reads 32 and 16 numbers, of which none share a bank.
  __device__ static int row() { return 4 * ((block_thread() >> 6) * 4 + (lane() >> 3)); }
  __device__ static int column() { return 4 * ((block_thread() >> 5 & 1) * 8 + (lane() & 7)); }

  // Adds the products of a depth of the factors that start there in the ring.
  __device__ static void multiply(int a, int b, float (&sum)[8][8]) {
    const float* const rows = ring() + a;
    const float* const columns = ring() + b;
#pragma unroll 2  // by 4 or 8 some GPUs' registers do not suffice
    for (int t = 0; t < kSumDepth; ++t) {
      float x[8], y[8];
      load_eight(rows + t * kSumSide, x);
      load_eight(columns + t * kSumSide, y);
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
    }
  }

  __device__ static void load_eight(const float* from, float (&x)[8]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto four = *reinterpret_cast<const float4*>(from + kSumSide / 2 * h);
      x[4 * h] = four.x, x[4 * h + 1] = four.y, x[4 * h + 2] = four.z, x[4 * h + 3] = four.w;
    }
  }

  // Adds the sums to the part, or begins it, and starts them anew.
  __device__ static void flush(float* part, bool begins, float (&sum)[8][8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* const s = sum[i] + 4 * h;
        float4& place = *reinterpret_cast<float4*>(part + (row() + i % 4 + i / 4 * 64) * kSumSide +
                                                   column() + kSumSide / 2 * h);
        const float4 before = begins ? float4{0.0f, 0.0f, 0.0f, 0.0f} : place;
        place = {before.x + s[0], before.y + s[1], before.z + s[2], before.w + s[3]};
        s[0] = s[1] = s[2] = s[3] = 0.0f;
      }
  }

  const BayesWriteArgs& args_;
  const SumsPlan& plan_;
  const EpisodeSums& sums_;
  int64_t b_;
};

// store(i, j, sum) for all of H, or for the lower triangle of G, by a team. Not synchronised.
template <class Store>
__device__ inline void add_parts(const EpisodeSums& sums, bool of_values, int rows, int columns,
                                 Store store) {
  const SumsPlan& plan = sums.plan;
  constexpr int strip = 16;  // rows at a time
  for (int piece = block_rank(); piece < plan.tiles() * (kSumSide / strip); piece += blocks()) {
    const int tile = piece / (kSumSide / strip), i0 = piece % (kSumSide / strip) * strip;
    const SumTile at = sum_tile(plan, tile);
    if (at.is_of_values != of_values) continue;
    const int first = plan.block_of(tile * plan.depths),
              last = plan.block_of((tile + 1) * plan.depths - 1);
    for (int e = block_thread(); e < strip * kSumSide; e += block_threads()) {
      const int i = i0 + e / kSumSide, j = e % kSumSide;
      const int row = at.row * kSumSide + i, column = at.column * kSumSide + j;
      if (row >= rows || column >= columns || (!of_values && column > row)) continue;
      const float* from =
          sums.parts + int64_t(tile + first) * (kSumSide * kSumSide) + i * kSumSide + j;
      double sum = 0.0;
#pragma unroll 4
      for (int block = first; block <= last; ++block, from += kSumSide * kSumSide)
        sum += double(*from);
      store(row, column, float(sum));
    }
  }
}

// This thread's share of the sum of squares of the scaled values.
__device__ inline double share_of_squares(const EpisodeSums& sums) {
  const SumsPlan& plan = sums.plan;
  double squares = 0.0;
  for (int v = thread(); v < plan.wide; v += threads()) {
    const int tile = 1 + v;  // the first row has one tile of G
    const int first = plan.block_of(tile * plan.depths),
              last = plan.block_of((tile + 1) * plan.depths - 1);
    for (int block = first; block <= last; ++block) squares += sums.squares[tile + block];
  }
  return squares;
}

}  // namespace kanerva::cuda
