#include "forget.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_forget(const ForgetArgs& args, const Executor& executor) { forget(args, executor); }

void run_forget_backward(const ForgetBackwardArgs& args, const Executor& executor) {
  forget_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
