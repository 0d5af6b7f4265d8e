// Runs every launcher of the CUDA backend in the PTX interpreter, forward and backward, over shapes
// that are no multiples of anything. Every result is checked to be finite and to be the same, bit
// by bit, whatever the order in which warps and blocks go on and when asynchronous copies land.
// With KANERVA_SHORT_RESULTS every result's buffer is one number too short, which must be found.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../csrc/cuda/launchers.h"
#include "problem.h"

using namespace kanerva;

namespace {

std::string only;  // an operator, or all
int team = 0;      // if not 0: the blocks that the device has processors for, of each memory
int64_t most_processors = 132;
std::string part;  // of what follows; operators are then called so, and can be run alone: cut_read

template <class Args>
void run(Problem& p, const char* operation, size_t (*workspace)(const Args&, const cuda::Device&),
         void (*launcher)(const Args&, const cuda::Launch&), const Args& args) {
  const std::string whole_name = part + operation;
  const char* const name = whole_name.c_str();
  if (!only.empty() && only != name) return;
  std::vector<std::vector<char>> first;
  const int64_t processors = team > 0 ? team * args.n.B : most_processors;
  setenv("KANERVA_PTX_PROCESSORS", std::to_string(processors).c_str(), 1);
  for (const char* seed : {"0", "1"}) {
    setenv("KANERVA_PTX_SEED", seed, 1);
    setenv("KANERVA_PTX_EARLY_COPIES", seed, 1);  // late in the first run, at once in the other
    p.restart();
    cuda::Launch to;
    to.device = cuda::current_device();
    std::vector<double> room((workspace(args, to.device) + 7) / 8 + 2);
    to.workspace =
        reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(room.data()) + 15) / 16 * 16);
    launcher(args, to);
    const Sizes n = args.n;
    const auto fail = [&](const char* what) {
      std::printf("%s (B %ld, T %ld, K %ld, C %ld): %s\n", name, long(n.B), long(n.T), long(n.K),
                  long(n.C), what);
      std::exit(1);
    };
    if (!p.finite()) fail("a result is not finite");
    std::vector<std::vector<char>> results = p.copies();
    if (!first.empty() && first != results) fail("results depend on the order of the warps");
    first = std::move(results);
  }
  std::printf("%s (B %ld, T %ld, K %ld, C %ld) ok\n", name, long(args.n.B), long(args.n.T),
              long(args.n.K), long(args.n.C));
}

// Of a memory between its writes; `settles` is `moves` with a stationary covariance of its own.
enum class Dynamics { still, decays, moves, settles };

// The memory before its writes.
void start(Problem& p, Dynamics dynamics, WriteInputs& a) {
  a.n = p.n;
  a.mean = p.input(p.n.K, p.n.C);
  a.cov = p.covariance();
  if (dynamics == Dynamics::settles) a.stationary_cov = p.covariance();
}

// Gives the inputs their dynamics; the problem's rows are those of the steps.
void give(Problem& p, Dynamics dynamics, WriteInputs& a) {
  if (dynamics == Dynamics::still) return;
  (dynamics == Dynamics::decays ? a.decay : a.retention) = p.input(p.n.T, 1, 0.9, 0.05);
}

// The result that its adjoint has for them.
void expect(Problem& p, Dynamics dynamics, WriteBackward& d) {
  if (dynamics == Dynamics::still) return;
  (dynamics == Dynamics::decays ? d.d_decay : d.d_retention) = p.result(p.n.T, 1);
}

#define RUN(op, args) run(p, #op, cuda::op##_workspace, cuda::op, args)

// Every operator there is, by its fields.
void every(Dtype dtype, Sizes n) {
#define KANERVA_RUN(op, Args)    \
  {                              \
    Problem p{dtype, n, {}, {}}; \
    RUN(op, filled<Args>(p));    \
  }
  KANERVA_OPERATORS(KANERVA_RUN)
#undef KANERVA_RUN
}

void write(Dtype dtype, Sizes n, double noise, Dynamics dynamics, bool masks, WriteMethod method) {
  Problem p{dtype, n, {}, {}};
  BayesWriteArgs a;
  a.method = method;
  start(p, dynamics, a);
  a.weights = p.input(n.T, n.K);
  a.values = p.input(n.T, n.C);
  a.noise_var = p.input(n.T, 1, noise, noise / 2);
  give(p, dynamics, a);
  if (masks) a.mask = p.mask();
  BayesWriteBackwardArgs d;
  static_cast<WriteInputs&>(d) = a;
  d.method = method;
  d.grad_mean = p.input(n.K, n.C);
  d.grad_cov = p.input(n.K, n.K);
  d.grad_log_evidence = p.input(1, 1);
  a.mean_out = p.result(n.K, n.C);
  a.cov_out = p.result(n.K, n.K);
  a.log_evidence = p.result(1, 1);
  RUN(bayes_write, a);
  p.results.clear();
  d.d_mean = p.result(n.K, n.C);
  d.d_cov = p.result(n.K, n.K);
  d.d_weights = p.result(n.T, n.K);
  d.d_values = p.result(n.T, n.C);
  d.d_noise_var = p.result(n.T, 1);
  expect(p, dynamics, d);
  if (a.stationary_cov) d.d_stationary_cov = p.result(n.K, n.K);
  RUN(bayes_write_backward, d);
  if (dynamics != Dynamics::still) return;
  // Any posterior serves: nothing is compared with the truth here.
  d.posterior_mean = p.input(n.K, n.C);
  d.posterior_cov = p.covariance();
  RUN(bayes_write_backward, d);
}

// A long episode of a large memory, the write alone: `apart` numbers more than they need lie
// between the rows of addresses and values, and before the first.
void long_write(Sizes n, bool masks, int64_t apart) {
  Problem p{Dtype::float32, n, {}, {}};
  BayesWriteArgs a;
  start(p, Dynamics::still, a);
  const auto skip = [&](View v) {
    v.data = static_cast<float*>(v.data) + apart;
    return v;
  };
  a.weights = skip(p.input(n.T, n.K + apart, 0.0, 1.0 / std::sqrt(double(n.K))));
  a.values = skip(p.input(n.T, n.C + apart));
  a.noise_var = p.input(n.T, 1, 1.0, 0.5);
  if (masks) a.mask = p.mask();
  a.mean_out = p.result(n.K, n.C);
  a.cov_out = p.result(n.K, n.K);
  a.log_evidence = p.result(1, 1);
  RUN(bayes_write, a);
}

// Without `count` each of the n.B states has steps of its own; else the rows hold `count`
// sequences.
void scan(Dtype dtype, Sizes n, double noise, Dynamics dynamics, bool masks, int64_t count,
          int64_t chunk_size) {
  Problem p{dtype, n, {}, {}};
  std::vector<int64_t> bounds;  // one of the sequences is empty
  CausalScanArgs a;
  a.chunk_size = chunk_size;
  start(p, dynamics, a);
  CausalScanBackwardArgs d;
  d.chunk_size = chunk_size;
  d.grad_mean = p.input(n.K, n.C);
  d.grad_cov = p.input(n.K, n.K);
  d.grad_log_evidence = p.input(1, 1);
  View mean_out = p.result(n.K, n.C), cov_out = p.result(n.K, n.K), evidence = p.result(1, 1);
  const auto of_states = p.results;
  if (count > 0) {
    for (int64_t i = 0; i <= count; ++i) bounds.push_back(i == 1 ? 0 : i * n.T / count);
    a.packing = d.packing = {bounds.data(), 1, count};
    p.n.B = n.B / count;
  }
  a.weights = p.input(n.T, n.K);
  a.values = p.input(n.T, n.C);
  a.queries = p.input(n.T, n.K);
  a.noise_var = p.input(n.T, 1, noise, noise / 2);
  give(p, dynamics, a);
  if (masks) a.mask = p.mask();
  static_cast<WriteInputs&>(d) = a;
  d.queries = a.queries;
  d.grad_reads = p.input(n.T, n.C);
  d.grad_read_var = p.input(n.T, 1);
  a.mean_out = mean_out, a.cov_out = cov_out, a.log_evidence = evidence;
  a.reads_out = p.result(n.T, n.C);
  a.read_var_out = p.result(n.T, 1);
  RUN(causal_scan, a);
  p.results.assign(of_states.begin(), of_states.end() - 1);
  d.d_mean = mean_out, d.d_cov = cov_out;
  d.d_weights = p.result(n.T, n.K);
  d.d_values = p.result(n.T, n.C);
  d.d_queries = p.result(n.T, n.K);
  d.d_noise_var = p.result(n.T, 1);
  expect(p, dynamics, d);
  p.n.B = n.B;
  if (a.stationary_cov) d.d_stationary_cov = p.result(n.K, n.K);
  RUN(causal_scan_backward, d);
}

// One step, also with its results in place of the state.
void step(Dtype dtype, Sizes n, Dynamics dynamics) {
  if (!only.empty() && only != "causal_scan") return;
  Problem p{dtype, n, {}, {}};
  CausalScanArgs a;
  start(p, dynamics, a);
  a.weights = p.input(1, n.K);
  a.values = p.input(1, n.C);
  a.queries = p.input(1, n.K);
  a.noise_var = p.input(1, 1, 1.0, 0.5);
  give(p, dynamics, a);
  a.mean_out = p.result(n.K, n.C);
  a.cov_out = p.result(n.K, n.K);
  a.reads_out = p.result(1, n.C);
  a.read_var_out = p.result(1, 1);
  a.log_evidence = p.result(1, 1);
  RUN(causal_scan, a);
  auto apart = p.copies();
  p.in_place(a.mean, n.K, n.C);
  p.in_place(a.cov, n.K, n.K);
  p.results.erase(p.results.begin(), p.results.begin() + 2);
  a.mean_out = a.mean, a.cov_out = a.cov;
  RUN(causal_scan, a);
  auto together = p.copies();
  std::rotate(together.begin(), together.end() - 2, together.end());
  // The evidence, the last of them, is a sum over other blocks of columns.
  const double difference = p.number(together.back()) - p.number(apart.back());
  const bool close = std::abs(difference) <= 1e-6 * std::abs(p.number(apart.back()));
  together.pop_back();
  apart.pop_back();
  if (together != apart || !close) {
    std::printf("causal_scan in place gives something else\n");
    std::exit(1);
  }
}

void recall(Dtype dtype, Sizes n, double ridge) {
  Problem p{dtype, n, {}, {}};
  RecallArgs a;
  a.n = n;
  a.mean = p.input(n.K, n.C);
  a.cov = p.covariance();
  a.queries = p.input(n.T, n.C);
  a.ridge = p.input(1, 1, ridge, ridge / 2);
  RecallBackwardArgs d;
  d.n = n;
  d.mean = a.mean, d.cov = a.cov, d.queries = a.queries, d.ridge = a.ridge;
  d.grad_values = p.input(n.T, n.C);
  d.grad_var = p.input(n.T, 1);
  d.grad_weights = p.input(n.T, n.K);
  SolveAddressesArgs s;
  s.n = n;
  s.mean = a.mean, s.queries = a.queries, s.ridge = a.ridge;
  SolveAddressesBackwardArgs t;
  t.n = n;
  t.mean = a.mean, t.queries = a.queries, t.ridge = a.ridge;
  t.grad_weights = d.grad_weights;
  ReadArgs r;
  r.n = n;
  r.mean = a.mean, r.cov = a.cov, r.weights = d.grad_weights;
  ReadBackwardArgs u;
  u.n = n;
  u.mean = a.mean, u.cov = a.cov, u.weights = d.grad_weights;
  u.grad_values = d.grad_values, u.grad_var = d.grad_var;

  a.weights_out = s.weights_out = d.weights = t.weights = p.result(n.T, n.K);
  RUN(solve_addresses, s);
  a.values_out = r.values_out = p.result(n.T, n.C);
  a.var_out = r.var_out = p.result(n.T, 1);
  RUN(recall, a);
  p.results.erase(p.results.begin());
  RUN(read, r);
  p.results.clear();
  d.d_mean = t.d_mean = u.d_mean = p.result(n.K, n.C);
  d.d_queries = t.d_queries = p.result(n.T, n.C);
  d.d_ridge = t.d_ridge = p.result(1, 1);
  RUN(solve_addresses_backward, t);
  d.d_cov = u.d_cov = p.result(n.K, n.K);
  RUN(recall_backward, d);
  p.results.erase(p.results.begin() + 1, p.results.begin() + 3);
  u.d_weights = p.result(n.T, n.K);
  RUN(read_backward, u);
}

void beliefs(Dtype dtype, Sizes n) {
  Problem p{dtype, n, {}, {}};
  MemoryKlArgs a;
  a.n = n;
  a.mean = p.input(n.K, n.C);
  a.cov = p.covariance();
  a.prior_mean = p.input(n.K, n.C);
  a.prior_cov = p.covariance();
  MemoryKlBackwardArgs d;
  d.n = n;
  d.grad = p.input(1, 1);
  d.mean = a.mean, d.cov = a.cov, d.prior_mean = a.prior_mean, d.prior_cov = a.prior_cov;
  StatisticsArgs s;
  s.n = n;
  s.mean = a.mean, s.cov = a.cov;
  StatisticsBackwardArgs t;
  t.n = n;
  t.grad_shift = p.input(n.K, n.C);
  t.grad_precision = p.input(n.K, n.K);
  t.shift = a.prior_mean;
  t.precision = a.prior_cov;
  a.kl_out = p.result(1, 1);
  RUN(memory_kl, a);
  p.results.clear();
  s.shift_out = p.result(n.K, n.C);
  s.precision_out = p.result(n.K, n.K);
  RUN(statistics, s);
  p.results.clear();
  d.d_mean = t.d_mean = p.result(n.K, n.C);
  d.d_cov = t.d_cov = p.result(n.K, n.K);
  RUN(statistics_backward, t);
  d.d_prior_mean = p.result(n.K, n.C);
  d.d_prior_cov = p.result(n.K, n.K);
  RUN(memory_kl_backward, d);
}

void adaptive(Dtype dtype, Sizes n, double noise, bool masks, int64_t num_iters) {
  Problem p{dtype, n, {}, {}};
  AdaptiveWriteArgs a;
  a.n = n;
  a.num_iters = num_iters;
  a.mean = p.input(n.K, n.C);
  a.cov = p.covariance();
  a.values = p.input(n.T, n.C);
  a.noise_var = p.input(n.T, 1, noise, noise / 2);
  a.ridge = p.input(1, 1, noise, noise / 2);
  if (masks) a.mask = p.mask();
  AdaptiveWriteBackwardArgs d;
  d.n = n;
  d.num_iters = num_iters;
  d.mean = a.mean, d.cov = a.cov, d.values = a.values, d.noise_var = a.noise_var;
  d.ridge = a.ridge, d.mask = a.mask;
  d.grad_mean = p.input(n.K, n.C);
  d.grad_cov = p.input(n.K, n.K);
  d.grad_weights = p.input(n.T, n.K);
  d.grad_step_kl = p.input(n.T, 1);
  d.grad_log_evidence = p.input(1, 1);
  d.weights = p.input(n.T, n.K, 0.0, 0.1);
  a.mean_out = p.result(n.K, n.C);
  a.cov_out = p.result(n.K, n.K);
  a.weights_out = p.result(n.T, n.K);
  a.step_kl = p.result(n.T, 1);
  a.log_evidence = p.result(1, 1);
  RUN(adaptive_write, a);
  p.results.clear();
  d.d_mean = p.result(n.K, n.C);
  d.d_cov = p.result(n.K, n.K);
  d.d_values = p.result(n.T, n.C);
  d.d_noise_var = p.result(n.T, 1);
  d.d_ridge = p.result(1, 1);
  RUN(adaptive_write_backward, d);
}

void forgetting(Dtype dtype, Sizes n, bool masks) {
  Problem p{dtype, n, {}, {}};
  ForgetArgs a;
  a.n = n;
  a.mean = p.input(n.K, n.C);
  a.cov = p.covariance();
  a.weights = p.input(n.T, n.K, 0.0, 0.5 / std::sqrt(double(n.T * n.K)));
  a.values = p.input(n.T, n.C);
  a.noise_var = p.input(n.T, 1, 1.0, 0.2);
  if (masks) a.mask = p.mask();
  ForgetBackwardArgs d;
  d.n = n;
  d.mean = a.mean, d.cov = a.cov, d.weights = a.weights, d.values = a.values;
  d.noise_var = a.noise_var, d.mask = a.mask;
  d.rest_mean = a.mean, d.rest_cov = a.cov;
  d.grad_mean = p.input(n.K, n.C);
  d.grad_cov = p.input(n.K, n.K);
  a.mean_out = p.result(n.K, n.C);
  a.cov_out = p.result(n.K, n.K);
  RUN(forget, a);
  p.results.clear();
  d.d_mean = p.result(n.K, n.C);
  d.d_cov = p.result(n.K, n.K);
  d.d_weights = p.result(n.T, n.K);
  d.d_values = p.result(n.T, n.C);
  d.d_noise_var = p.result(n.T, 1);
  RUN(forget_backward, d);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) only = arguments[1];
  using M = WriteMethod;
  using D = Dynamics;
  struct Setting {
    const char *shared, *team_work;
    int team;
  };
  // The second leaves most to the workspace; the others have teams of blocks for all memories, the
  // last ones clusters where the architecture has them.
  for (const Setting& setting :
       {Setting{"232448", "", 0}, {"20000", "", 0}, {"232448", "0", 3}, {"232448", "0", 4}}) {
    setenv("KANERVA_PTX_SHARED_BYTES", setting.shared, 1);
    setenv("KANERVA_TEAM_WORK", setting.team_work, 1);
    team = setting.team;
    write(Dtype::float32, {2, 37, 19, 23}, 1.0, D::still, true, M::automatic);
    write(Dtype::float32, {1, 20, 33, 70}, 1e-3, D::decays, true, M::automatic);
    write(Dtype::float32, {1, 5, 9, 200}, 1.0, D::still, false, M::automatic);
    write(Dtype::float64, {1, 35, 6, 5}, 1.0, D::decays, true, M::chunk);
    write(Dtype::float64, {1, 7, 11, 13}, 1e-6, D::decays, false, M::automatic);
    write(Dtype::float32, {1, 1, 1, 1}, 1.0, D::still, false, M::sqrt);
    write(Dtype::float32, {2, 70, 17, 23}, 1.0, D::still, true, M::information);
    write(Dtype::float64, {1, 101, 6, 130}, 1.0, D::still, false, M::automatic);
    scan(Dtype::float32, {2, 37, 19, 23}, 1.0, D::still, true, 0, 0);
    scan(Dtype::float32, {1, 20, 33, 70}, 1e-3, D::decays, true, 0, 7);
    scan(Dtype::float32, {8, 90, 9, 11}, 1.0, D::still, true, 4, 0);
    scan(Dtype::float32, {1, 5, 9, 200}, 1.0, D::still, false, 0, 0);
    scan(Dtype::float64, {6, 40, 6, 5}, 1.0, D::decays, false, 3, 0);
    scan(Dtype::float64, {1, 9, 11, 13}, 1e-6, D::decays, true, 0, 0);
    step(Dtype::float32, {2, 1, 19, 23}, D::decays);
    step(Dtype::float32, {1, 1, 66, 80}, D::still);  // of several blocks or tiles if not in place
    step(Dtype::float64, {1, 1, 5, 70}, D::decays);
    write(Dtype::float32, {2, 37, 19, 23}, 1.0, D::settles, true, M::automatic);
    write(Dtype::float64, {1, 7, 11, 13}, 1e-6, D::moves, false, M::automatic);
    write(Dtype::float32, {1, 5, 1, 70}, 1.0, D::moves, true, M::sqrt);
    scan(Dtype::float32, {1, 37, 33, 70}, 1.0, D::moves, true, 0, 0);
    scan(Dtype::float32, {4, 40, 19, 23}, 1.0, D::settles, true, 2, 7);
    scan(Dtype::float64, {3, 13, 6, 5}, 1.0, D::settles, false, 3, 0);
    scan(Dtype::float64, {1, 5, 11, 13}, 1e-9, D::moves, true, 0, 0);
    step(Dtype::float64, {1, 1, 5, 70}, D::settles);
    recall(Dtype::float32, {2, 37, 11, 21}, 1.0);
    recall(Dtype::float64, {1, 9, 21, 6}, 1e-3);
    recall(Dtype::float32, {1, 3, 35, 40}, 1e-6);
    recall(Dtype::float32, {1, 5, 66, 70}, 100.0);  // products in tiles of a team
    beliefs(Dtype::float32, {2, 0, 35, 9});
    beliefs(Dtype::float64, {1, 0, 1, 1});
    adaptive(Dtype::float32, {2, 35, 11, 21}, 1.0, true, 1);
    adaptive(Dtype::float64, {1, 6, 21, 6}, 1e-3, false, 3);
    adaptive(Dtype::float64, {1, 4, 7, 37}, 1e-2, true, 2);
    adaptive(Dtype::float32, {1, 1, 1, 1}, 1.0, false, 1);
    forgetting(Dtype::float32, {2, 37, 19, 23}, true);
    forgetting(Dtype::float64, {1, 70, 9, 40}, false);
    forgetting(Dtype::float64, {1, 1, 1, 1}, false);
  }
  setenv("KANERVA_TEAM_WORK", "", 1);
  team = 0;
  // Sequences in segments: of one chunk and several, of one step, an empty one; what is too hard
  // for them; elements in registers and beyond.
  part = "cut_";
  for (const char* shared : {"20000", "232448"}) {
    setenv("KANERVA_PTX_SHARED_BYTES", shared, 1);
    setenv("KANERVA_SEGMENTS", "4", 1);
    scan(Dtype::float32, {2, 70, 19, 23}, 1.0, D::settles, true, 0, 0);
    scan(Dtype::float64, {6, 40, 35, 5}, 1.0, D::moves, false, 3, 3);
    scan(Dtype::float64, {1, 9, 11, 13}, 1e-9, D::moves, true, 0, 0);
    scan(Dtype::float32, {2, 150, 33, 9}, 30.0, D::moves, true, 0, 0);
    write(Dtype::float32, {1, 70, 66, 9}, 1.0, D::moves, true, M::automatic);
    setenv("KANERVA_SEGMENTS", "7", 1);
    write(Dtype::float64, {1, 7, 5, 40}, 1.0, D::settles, false, M::automatic);
  }
  scan(Dtype::float32, {1, 15, 130, 3}, 1.0, D::moves, false, 0, 0);
  setenv("KANERVA_SEGMENTS", "", 1);
  part = "";
  every(Dtype::float32, {2, 9, 7, 5});
  every(Dtype::float64, {1, 6, 5, 9});
  // Kernels of small memories: blocks of columns, several panels of an adjoint, in place.
  part = "small_";
  write(Dtype::float32, {1, 64, 32, 300}, 1.0, D::still, false, M::automatic);
  write(Dtype::float32, {1, 40, 50, 200}, 1.0, D::still, true, M::automatic);
  write(Dtype::float32, {1, 33, 19, 450}, 1.0, D::still, true, M::automatic);  // of a team as well
  step(Dtype::float32, {2, 1, 40, 110}, D::still);
  scan(Dtype::float32, {2, 70, 64, 20}, 30.0, D::moves, true, 0, 0);
  scan(Dtype::float32, {2, 40, 20, 23}, 1e-4, D::moves, false, 2, 0);  // too hard for it
  adaptive(Dtype::float32, {2, 35, 32, 40}, 1.0, false, 1);
  adaptive(Dtype::float32, {1, 40, 50, 60}, 1.0, true, 2);
  adaptive(Dtype::float32, {2, 33, 20, 30}, 1e-6, true, 1);  // too hard for it
  part = "";
  // Sums over the steps of a long episode, and panels: two tiles or more of each, ragged ones, of
  // which one block has several and several blocks have one; copies by 16 and by 4 bytes.
  part = "long_";
  most_processors = 4;
  setenv("KANERVA_TEAM_WORK", "0", 1);
  long_write({1, 530, 264, 132}, false, 0);
  long_write({1, 860, 257, 3}, true, 1);
  setenv("KANERVA_TEAM_WORK", "", 1);
  // Memories of clusters: of 8, 4 and 2 blocks, some without a slot or a column.
  part = "cluster_";
  most_processors = 132;
  long_write({2, 70, 130, 40}, true, 0);
  most_processors = 8;
  long_write({2, 33, 100, 60}, false, 1);
  most_processors = 2;
  long_write({2, 97, 70, 100}, true, 0);
  // Gradients of more slots or steps than small kernels take: one block, teams, clusters; ragged
  // tiles, rows that are no multiple of 16 bytes; the last is too hard.
  part = "large_";
  const std::string wanted = only;
  if (only.empty()) only = "large_bayes_write_backward";
  setenv("KANERVA_TEAM_WORK", "0", 1);
  for (const int blocks : {1, 3, 4}) {
    team = blocks;
    write(Dtype::float32, {2, 70, 67, 41}, 1.0, D::still, true, M::automatic);
    write(Dtype::float32, {1, 17, 132, 68}, 1.0, D::still, false, M::automatic);
  }
  setenv("KANERVA_TEAM_WORK", "", 1);
  team = 0;
  most_processors = 1;  // one memory after the other
  write(Dtype::float32, {3, 5, 66, 30}, 1.0, D::still, false, M::automatic);
  write(Dtype::float32, {2, 66, 40, 9}, 1e-6, D::still, true, M::automatic);
  only = wanted;
  part = "";
  // Fewer processors than memories: what is too hard is marked, and done by another kernel; several
  // tiles of queries for a block.
  most_processors = 5;
  write(Dtype::float32, {2, 37, 40, 60}, 1.0, D::still, false, M::automatic);  // teams of two
  most_processors = 1;
  write(Dtype::float32, {2, 37, 40, 130}, 1.0, D::still, false, M::automatic);
  write(Dtype::float32, {3, 37, 19, 23}, 1e-4, D::still, true, M::automatic);
  write(Dtype::float32, {3, 37, 40, 23}, 1.0, D::decays, false, M::automatic);
  scan(Dtype::float32, {3, 37, 19, 23}, 1e-4, D::still, true, 0, 0);
  scan(Dtype::float32, {3, 37, 19, 23}, 1.0, D::moves, true, 0, 0);
  write(Dtype::float32, {2, 65, 40, 23}, 30.0, D::moves, true, M::automatic);
  recall(Dtype::float32, {2, 70, 11, 21}, 1.0);
  recall(Dtype::float32, {2, 70, 40, 50}, 1e-6);
  return 0;
}
