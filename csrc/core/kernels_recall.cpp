#include "kernels.h"
#include "recall.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_recall(const RecallArgs& args, const Executor& executor) { recall(args, executor); }

void run_recall_backward(const RecallBackwardArgs& args, const Executor& executor) {
  recall_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
