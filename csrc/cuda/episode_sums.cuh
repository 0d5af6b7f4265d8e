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
// A block copies 16 steps of both factors to shared memory while it multiplies by those before.
// Each thread scales what it copied by n^-1/2 once it has landed, so that G comes out as in
// information.cuh, and splits it into numbers of tensor cores (3xTF32, fragments.cuh): once for all
// warps, which read what they multiply as it is. A warp has 32 x 32 numbers of the tile. After 256
// steps they go to the part, so that no sum in float32 is long.
//
// Floor at (1, 65536, 512, 768): 34 tiles, 36.5 G multiply-adds, 0.46 ms in tensor cores.
#pragma once

#include "small_factor.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

constexpr int kSumSide = 128;
constexpr int kSumDepth = 16;  // steps at a time
constexpr int kSumPart = 16;   // of them until a tile's sums go to the workspace
constexpr int kSumThreads = 512;

// A block's shared memory: some steps of both factors of a tile as they are copied, with the scales
// for the warps that copy each of them; and split, two columns in four numbers: high and low of
// one, then of the next. Columns 4 u and 4 u + 1 of step t lie at (t, 0, u ^ 2 (t % 4)), the two
// after them at (t, 1, u ^ 2 (t % 4)): so a quarter of a warp meets no bank twice, whether it
// stores pairs of a step or loads two of each of 4 steps.
struct SumMemory {
  float x[2][kSumDepth][kSumSide], scales[2][kSumDepth];
  float4 split[2][2][kSumDepth][2][kSumSide / 4];  // of this depth and of the next
  double squares[kSumThreads];                     // of each thread's scaled values
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

// By the processors that the memories leave each, a block on one, each with 256 steps or more.
inline SumsPlan plan_sums(const Sizes& n, const Device& device) {
  const auto tiles = [](int64_t size) { return int((size + kSumSide - 1) / kSumSide); };
  SumsPlan plan;
  if (device.shared_per_block < sizeof(SumMemory)) return plan;
  plan.rows = tiles(n.K);
  plan.wide = tiles(n.C);
  plan.depths = (n.T + kSumDepth - 1) / kSumDepth;
  const int64_t room = int64_t(device.processors) / n.B, pieces = plan.total() / kSumPart;
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
  static constexpr int kHalf = kSumThreads / 2;
  static constexpr int kPair = kSumSide / 4;  // of split, from a pair of columns to the next one
  static constexpr int kStep = 2 * kPair;     // from a step to the next
  static constexpr int kSteps = kHalf / 32;   // that a half copies at a time
  static constexpr int kCopies = kSumDepth / kSteps;  // of a thread

  // What a thread copies: half of the threads of W for the rows of a tile, half of W or Z for its
  // columns; of each depth four numbers of every eighth step, and some lanes of each warp the
  // scales of its steps. So a warp waits for nothing but its own. What is not there is not read,
  // wherever these point.
  struct Source {
    const float* numbers;  // of the first step
    unsigned bits;         // below, and how many of the four columns there are: of few registers
  };

  enum : unsigned { kColumns = 7, kAligned = 8, kValues = 16, kIsThere = 32, kSquares = 64 };

  __device__ static SumMemory& memory() { return *reinterpret_cast<SumMemory*>(block_memory()); }
  __device__ static int own_factor() { return block_thread() / kHalf; }
  __device__ static int own_step() { return block_thread() % kHalf >> 5; }
  __device__ static float* own_numbers() {
    return &memory().x[own_factor()][own_step()][4 * lane()];
  }
  __device__ static float* own_scales() { return &memory().scales[own_factor()][own_step()]; }

  // From `depth` of a tile on.
  __device__ Source source(const SumTile& at, bool is_diagonal, int depth) const {
    const bool of_values = own_factor() == 1 && at.is_of_values;
    const Rows rows = rows_of(of_values ? args_.values : args_.weights, b_, 0, 0);
    const int64_t t = int64_t(depth) * kSumDepth + own_step();
    const int64_t first = int64_t(own_factor() == 0 ? at.row : at.column) * kSumSide + 4 * lane();
    const int64_t right = (of_values ? args_.n.C : args_.n.K) - first;
    unsigned bits = unsigned(right < 0 ? 0 : right < 4 ? right : 4);
    if (is_aligned(rows)) bits |= kAligned;
    if (of_values) bits |= at.row == 0 ? kValues | kSquares : kValues;
    if (own_factor() == 0 || !is_diagonal) bits |= kIsThere;
    return {rows.data + t * rows.row + first, bits};
  }

  // Starts the copy of `depth` and goes on to the next.
  __device__ void start(Source& x, int depth) const {
    float* const place = own_numbers();
    const int64_t row = ((x.bits & kValues) != 0 ? args_.values : args_.weights).stride[1];
    const int64_t t = int64_t(depth) * kSumDepth + own_step();
    const int left =
        int(args_.n.T - t < kSumDepth ? args_.n.T - t : kSumDepth);  // from this step on
    const int columns = int(x.bits & kColumns);
    if ((x.bits & kAligned) != 0) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i)
        copy_async<16>(place + kSteps * kSumSide * i, x.numbers + kSteps * i * row,
                       kSteps * i < left ? 4 * columns : 0);
    } else {
#pragma unroll 1
      for (int i = 0; i < kCopies; ++i)
#pragma unroll 1
        for (int e = 0; e < 4; ++e)
          copy_async<4>(place + kSteps * kSumSide * i + e, x.numbers + kSteps * i * row + e,
                        kSteps * i < left && e < columns ? 4 : 0);
    }
    if (lane() < kCopies)
      copy_async<4>(own_scales() + kSteps * lane(), sums_.scales + t + kSteps * lane(),
                    kSteps * lane() < left ? 4 : 0);
    x.numbers += kSumDepth * row;
  }

  __device__ static float4 split_pair(float x, float y) {
    float4 both;
    split(x, both.x, both.y);
    split(y, both.z, both.w);
    return both;
  }

  // Scales and splits what the thread copied; what the mask leaves out becomes zero, whatever it
  // was. Gives the sum of squares.
  __device__ static float prepare(int buffer) {
    float4* const to =
        &memory().split[buffer][own_factor()][own_step()][0][lane() ^ 2 * (own_step() % 4)];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const float scale = own_scales()[kSteps * i];
      float4 y = *reinterpret_cast<const float4*>(own_numbers() + kSteps * kSumSide * i);
      if (scale >= 0.0f) {  // the same in all lanes
        y = {y.x * scale, y.y * scale, y.z * scale, y.w * scale};
      } else {
        y = {0.0f, 0.0f, 0.0f, 0.0f};
      }
      squares = fmaf(y.x, y.x, fmaf(y.y, y.y, fmaf(y.z, y.z, fmaf(y.w, y.w, squares))));
      to[kSteps * kStep * i] = split_pair(y.x, y.y);
      to[kSteps * kStep * i + kPair] = split_pair(y.z, y.w);
    }
    return squares;
  }

  // The part of a tile, over depths of it.
  __device__ void add_up(int tile, int part, int first, int last) {
    const SumTile at = sum_tile(plan_, tile);
    const bool is_diagonal = !at.is_of_values && at.row == at.column;
    Source x = source(at, is_diagonal, first);
    const auto is = [&](unsigned bit) { return (x.bits & bit) != 0; };
    double& squares = memory().squares[block_thread()];  // registers are short
    squares = 0.0;
    Sum sum = {};
    if (is(kIsThere)) start(x, first);
    end_copies();
    for (int depth = first; depth < last; ++depth) {
      const int buffer = depth & 1;
      wait_for_copies<0>();
      __syncwarp();
      if (is(kIsThere)) {
        const float more = prepare(buffer);
        if (is(kSquares)) squares += double(more);
      }
      __syncthreads();  // and every thread is done with the depth before
      if (is(kIsThere) && depth + 1 < last) start(x, depth + 1);
      end_copies();
      multiply(memory().split[buffer][0][0][0], memory().split[buffer][is_diagonal ? 0 : 1][0][0],
               sum);
      const int passed = depth - first + 1;
      if (passed % kSumPart == 0 || depth + 1 == last)
        flush(sums_.parts + int64_t(part) * (kSumSide * kSumSide), passed <= kSumPart, sum);
    }
    if (at.is_of_values && at.row == 0) {
      const double total = block_sum(squares);
      if (block_thread() == 0) sums_.squares[part] = total;
    }
    __syncthreads();
  }

  // Of a tile a warp has rows 4 u to 4 u + 3 for 8 u from first_row() on, and columns 4 v to 4 v +
  // 3 likewise. A lane loads for one of them, number lane / 4, what products of 16 x 8 need whose
  // rows g and g + 8 are rows 4 u + 2 p and 4 u + 2 p + 1, for p = 0 and 1, and whose column g is
  // one of the four of v.
  __device__ static int first_row() { return (block_thread() >> 5) % 4 * 8; }
  __device__ static int first_column() { return (block_thread() >> 5) / 4 * 8; }
  // A thread's number, of which the compiler keeps nothing in registers from one depth to the next.
  __device__ static int thread_again() {
    int thread = block_thread();
    asm volatile("" : "+r"(thread));
    return thread;
  }

  // Of p of the rows, and of p and the column in its pair.
  using Sum = float[2][4][4];

  // Adds the products of a depth of two factors.
  __device__ static void multiply(const float4* rows, const float4* columns, Sum& sum) {
    const int g = lane() >> 2, t = lane() & 3, own = t * kStep + (g ^ 2 * t);
    rows += own + first_row();
    columns += own + first_column();
    float part[2][2][2][4] = {};  // of p of the columns, p of the rows, and the column in its pair
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      float a_high[2][4], a_low[2][4];
#pragma unroll
      for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float4 x = rows[(8 * q + 4 * r) * kStep + p * kPair];
          a_high[p][2 * r] = x.x, a_low[p][2 * r] = x.y;
          a_high[p][2 * r + 1] = x.z, a_low[p][2 * r + 1] = x.w;
        }
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const float4 x = columns[8 * q * kStep + p * kPair];
        const float4 y = columns[(8 * q + 4) * kStep + p * kPair];
        const float high[2][2] = {{x.x, y.x}, {x.z, y.z}}, low[2][2] = {{x.y, y.y}, {x.w, y.w}};
        // Four sums in turn, for each waits for its last product.
#pragma unroll
        for (int i = 0; i < 4; ++i)
          multiply_add_tf32(part[p][i / 2][i % 2], a_low[i / 2], high[i % 2]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          multiply_add_tf32(part[p][i / 2][i % 2], a_high[i / 2], low[i % 2]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          multiply_add_tf32(part[p][i / 2][i % 2], a_high[i / 2], high[i % 2]);
      }
    }
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i / 2][2 * p + i % 2][e] += part[p][i / 2][i % 2][e];
  }

  // Adds the sums to the part, or begins it, and starts them anew.
  __device__ static void flush(float* part, bool begins, Sum& sum) {
    const int thread = thread_again(), warp = thread >> 5, g = thread >> 2 & 7, t = thread & 3;
    part += 4 * (warp % 4 * 8 + g) * kSumSide + 4 * (warp / 4 * 8 + 2 * t);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const auto s = [&](int j) -> float& { return sum[i / 2][j][2 * (i % 2) + e]; };
        float4& place = *reinterpret_cast<float4*>(part + i * kSumSide + 4 * e);
        float4 before = {0.0f, 0.0f, 0.0f, 0.0f};
        if (!begins) before = place;
        place = {before.x + s(0), before.y + s(1), before.z + s(2), before.w + s(3)};
        s(0) = s(1) = s(2) = s(3) = 0.0f;
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
