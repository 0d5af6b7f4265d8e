#include "bayes_write_backward.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_bayes_write(const BayesWriteArgs& args, const Executor& executor) {
  bayes_write(args, executor);
}

void run_bayes_write_backward(const BayesWriteBackwardArgs& args, const Executor& executor) {
  bayes_write_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
