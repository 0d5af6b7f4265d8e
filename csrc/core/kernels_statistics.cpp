#include "kernels.h"
#include "statistics.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_statistics(const StatisticsArgs& args, const Executor& executor) {
  statistics(args, executor);
}

void run_statistics_backward(const StatisticsBackwardArgs& args, const Executor& executor) {
  statistics_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
