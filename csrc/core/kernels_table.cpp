// The table of this instruction set.
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

const Kernels& table() {
  static const Kernels t = {
      run_bayes_write,
      run_bayes_write_backward,
      run_solve_addresses,
      run_solve_addresses_backward,
      run_read,
      run_read_backward,
      run_recall,
      run_recall_backward,
      run_memory_kl,
      run_memory_kl_backward,
      run_statistics,
      run_statistics_backward,
      run_adaptive_write,
      run_adaptive_write_backward,
      run_forget,
      run_forget_backward,
      run_causal_scan,
      run_causal_scan_backward,
  };
  return t;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
