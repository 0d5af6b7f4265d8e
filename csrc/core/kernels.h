// Entry points of one instruction set, each defined in a file of its own so that they compile in
// parallel.
#pragma once

#include "arguments.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_bayes_write(const BayesWriteArgs&, const Executor&);
void run_bayes_write_backward(const BayesWriteBackwardArgs&, const Executor&);
void run_solve_addresses(const SolveAddressesArgs&, const Executor&);
void run_solve_addresses_backward(const SolveAddressesBackwardArgs&, const Executor&);
void run_read(const ReadArgs&, const Executor&);
void run_read_backward(const ReadBackwardArgs&, const Executor&);
void run_recall(const RecallArgs&, const Executor&);
void run_recall_backward(const RecallBackwardArgs&, const Executor&);
void run_memory_kl(const MemoryKlArgs&, const Executor&);
void run_memory_kl_backward(const MemoryKlBackwardArgs&, const Executor&);
void run_statistics(const StatisticsArgs&, const Executor&);
void run_statistics_backward(const StatisticsBackwardArgs&, const Executor&);
void run_adaptive_write(const AdaptiveWriteArgs&, const Executor&);
void run_adaptive_write_backward(const AdaptiveWriteBackwardArgs&, const Executor&);
void run_forget(const ForgetArgs&, const Executor&);
void run_forget_backward(const ForgetBackwardArgs&, const Executor&);
void run_causal_scan(const CausalScanArgs&, const Executor&);
void run_causal_scan_backward(const CausalScanBackwardArgs&, const Executor&);

}  // namespace KANERVA_ISA
}  // namespace kanerva
