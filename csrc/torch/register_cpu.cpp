// Registers the CPU's operators with torch.
#include "operators.h"
#include "parts.h"

namespace kanerva::cpu {

namespace {

// Torch's own pool, so that torch.set_num_threads holds.
class TorchExecutor final : public Executor {
 public:
  int64_t threads() const override { return threads_; }
  void run(int64_t tasks, void (*body)(void*, int64_t), void* data) const override {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(data, i);
    });
  }

 private:
  const int64_t threads_ = torch::stable::get_num_threads();
};

struct Backend {
  explicit Backend(const ops::Tensor&) {}
  // The dispatcher chooses the CPU only where all tensors are on it.
  static void check_device(const ops::Tensor&, const char*) {}
  static int32_t device_type() { return aoti_torch_device_type_cpu(); }
  static int32_t device_index() { return 0; }

#define KANERVA_OPERATOR(op, Args) \
  static void run(const Args& args) { kernels().op(args, TorchExecutor()); }

  KANERVA_OPERATORS(KANERVA_OPERATOR)
#undef KANERVA_OPERATOR

#define KANERVA_PART(part, Args) \
  static void run(const Args& args) { parts().part(args, TorchExecutor()); }

  KANERVA_PARTS(KANERVA_PART)
#undef KANERVA_PART
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  ops::register_operators<Backend>(m);
#define KANERVA_REGISTER(part, Args) m.impl(#part, TORCH_BOX(&ops::part<Backend>));
  KANERVA_PARTS(KANERVA_REGISTER)
#undef KANERVA_REGISTER
}

}  // namespace kanerva::cpu
