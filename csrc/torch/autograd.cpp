// The Autograd kernels of the operators, in C++: what ops/_autograd.py does with a Python Function.
//
// A call whose arguments need a gradient leaves a node in PyTorch's graph that keeps them; backward
// calls the operator <name>_backward. One boxed kernel serves every operator, by its schema. Unlike
// the other libraries this one needs PyTorch's unstable headers: it serves the version that it was
// compiled against, and Python serves the others.
#include <torch/csrc/utils/pybind.h>
//
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "direct_call.h"

namespace kanerva {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::jit::Stack;

// PyTorch holds nodes by std::shared_ptr, and later by its own pointer.
using NodePointer = std::decay_t<decltype(std::declval<at::Tensor>().grad_fn())>;
constexpr bool kSharedNodes = std::is_same_v<NodePointer, std::shared_ptr<Node>>;

template <class T, class Pointer = NodePointer>
Pointer pointer_to(T& node) {
  if constexpr (kSharedNodes) {
    return node.shared_from_this();
  } else {
    return Pointer::unsafe_reclaim_from_nonowning(&node);
  }
}

struct Operator {
  c10::OperatorHandle forward, backward;
  std::string name;
  size_t arguments, results;
  // The arguments that get a gradient, in the order of backward's results, and the results that
  // backward takes.
  std::vector<size_t> differentiable, saved_results;
  // <name>_backward in Python, for what this file does not do: forward mode through backward.
  pybind11::handle with_tangents;
};

bool is_transformed(const at::Tensor& tensor) {
  return tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper);
}

// Of forward mode, or of a transform of torch.func that may be one.
bool may_have_tangent(const at::Tensor& tensor) {
  return is_transformed(tensor) || tensor._fw_grad(/*level=*/0).defined();
}

bool may_have_tangent(const c10::IValue& value) {
  return value.isTensor() && may_have_tangent(value.toTensor());
}

// Calls the function in Python on the stack, which its results replace.
void call_with_tangents(const Operator& op, Stack& stack) {
  const pybind11::gil_scoped_acquire gil;
  pybind11::tuple arguments(stack.size());
  for (size_t i = 0; i < stack.size(); ++i) {
    const c10::IValue& value = stack[i];
    arguments[i] = value.isTensor()   ? pybind11::cast(value.toTensor())
                   : value.isInt()    ? pybind11::cast(value.toInt())
                   : value.isString() ? pybind11::cast(value.toStringRef())
                                      : pybind11::none();
  }
  stack.clear();
  const pybind11::object found = op.with_tangents(*arguments);
  if (pybind11::isinstance<pybind11::tuple>(found)) {
    for (const pybind11::handle each : found) stack.emplace_back(each.cast<at::Tensor>());
  } else {
    stack.emplace_back(found.cast<at::Tensor>());
  }
}

class Gradient final : public Node {
 public:
  explicit Gradient(std::shared_ptr<const Operator> op) : op_(std::move(op)) {}

  std::string name() const override { return "Kanerva_" + op_->name + "Backward"; }

  // Keeps the arguments, and an edge to each that may get a gradient.
  void keep_arguments(const Stack& stack, size_t first) {
    torch::autograd::edge_list edges;
    for (const size_t i : op_->differentiable)
      edges.push_back(stack[first + i].isTensor()
                          ? torch::autograd::impl::gradient_edge(stack[first + i].toTensor())
                          : torch::autograd::Edge());
    set_next_edges(std::move(edges));
    tensors_.reserve(op_->arguments + op_->saved_results.size());
    for (size_t i = 0; i < op_->arguments; ++i) {
      const c10::IValue& argument = stack[first + i];
      const bool is_tensor = argument.isTensor();
      tensors_.emplace_back(is_tensor ? argument.toTensor() : at::Tensor(), false);
      others_.push_back(is_tensor ? c10::IValue() : argument);
    }
  }

  void keep_result(const at::Tensor& result) { tensors_.emplace_back(result, true); }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const NodePointer self = pointer_to(*this);
    std::vector<at::Tensor> tensors;
    tensors.reserve(tensors_.size());
    for (const SavedVariable& each : tensors_) tensors.push_back(each.unpack(self));
    return differentiate(*op_, grads, std::move(tensors), others_);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& each : tensors_) each.reset_data();
  }

  // What follows serves compiled autograd: what the node depends on, and how it is traced.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(name());
    for (size_t i = 0; i < tensors_.size(); ++i) args.collect(tensors_[i], i >= op_->arguments);
    for (const c10::IValue& each : others_) args.collect(each);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    using namespace torch::dynamo::autograd;
    for (SavedVariable& each : tensors_) saved.before(each);
    PackedArgs packed;
    packed.pack(int64_t(reinterpret_cast<intptr_t>(op_.get())));
    packed.pack(int64_t(others_.size()));
    for (const c10::IValue& each : others_) packed.pack(each);
    const NodePointer self = pointer_to(*this);
    for (const SavedVariable& each : tensors_) packed.pack(each.unpack(self));
    const std::vector<c10::IValue> args = std::move(packed).vec();
    std::vector<at::TypePtr> schema;
    for (const c10::IValue& each : args)
      schema.push_back(each.isTensor() ? at::TensorType::get() : each.type());
    const auto metadata =
        IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            get_input_metadata(next_edges()));
    const auto& python = getPyCompilerInterface();
    const std::string bound = python->bind_function(saved.get_py_compiler(), name(), &traced,
                                                    std::move(schema), true, true);
    variable_list found = python->call_function(saved.get_py_compiler(), "apply_functional", bound,
                                                grads, args, metadata);
    for (SavedVariable& each : tensors_) saved.after(each);
    return found;
  }

 private:
  static variable_list traced(const variable_list& grads, const std::vector<c10::IValue>& args) {
    const auto* op = reinterpret_cast<const Operator*>(intptr_t(args[0].toInt()));
    const auto others = args.begin() + 2;
    const auto tensors = others + args[1].toInt();
    std::vector<at::Tensor> kept;
    for (auto each = tensors; each != args.end(); ++each)
      kept.push_back(each->isTensor() ? each->toTensor() : at::Tensor());
    return differentiate(*op, grads, std::move(kept), {others, tensors});
  }

  // Calls <name>_backward(*gradients of results, *arguments, *saved results).
  static variable_list differentiate(const Operator& op, const variable_list& grads,
                                     std::vector<at::Tensor>&& tensors,
                                     const std::vector<c10::IValue>& others) {
    variable_list found(op.differentiable.size());
    Stack stack;
    stack.reserve(op.results + tensors.size());
    bool any = false;
    for (const at::Tensor& grad : grads) {
      any = any || grad.defined();
      stack.push_back(grad.defined() ? c10::IValue(grad) : c10::IValue());
    }
    if (!any) return found;
    std::vector<bool> given(op.arguments);
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (i < op.arguments) given[i] = tensors[i].defined();
      if (tensors[i].defined()) {
        stack.emplace_back(std::move(tensors[i]));
      } else {
        stack.push_back(others[i]);
      }
    }
    if (std::any_of(stack.begin(), stack.end(),
                    [](const c10::IValue& value) { return may_have_tangent(value); })) {
      call_with_tangents(op, stack);
    } else if (at::GradMode::is_enabled()) {
      op.backward.callBoxed(stack);  // recorded, for second derivatives
    } else {
      const at::AutoDispatchBelowAutograd guard;
      op.backward.callBoxed(stack);
    }
    for (size_t i = 0; i < std::min(found.size(), stack.size()); ++i)
      if (given[op.differentiable[i]]) found[i] = std::move(stack[i]).toTensor();
    return found;
  }

  const std::shared_ptr<const Operator> op_;
  std::vector<SavedVariable> tensors_;  // arguments, undefined where they are none; saved results
  std::vector<c10::IValue> others_;     // the arguments that are no tensors
};

template <class Pointer>
Pointer new_gradient(std::shared_ptr<const Operator> op) {
  if constexpr (kSharedNodes) {
    return Pointer(new Gradient(std::move(op)), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Gradient>(std::move(op));
  }
}

class AutogradKernel final : public c10::OperatorKernel {
 public:
  explicit AutogradKernel(std::shared_ptr<const Operator> op) : op_(std::move(op)) {}

  void operator()(const c10::OperatorHandle& handle, c10::DispatchKeySet, Stack* stack) {
    const size_t first = stack->size() - op_->arguments;
    bool needs_gradient = false;
    for (const size_t i : op_->differentiable) {
      const c10::IValue& argument = (*stack)[first + i];
      if (!argument.isTensor()) continue;
      const at::Tensor& tensor = argument.toTensor();
      needs_gradient = needs_gradient || tensor.requires_grad();
      refuse_tangents(handle, tensor);
    }
    if (!needs_gradient || !at::GradMode::is_enabled()) {
      const at::AutoDispatchBelowAutograd guard;
      handle.callBoxed(stack);
      return;
    }
    const auto node = new_gradient<NodePointer>(op_);
    auto* const gradient = static_cast<Gradient*>(node.get());
    gradient->keep_arguments(*stack, first);
    {
      const at::AutoDispatchBelowAutograd guard;
      handle.callBoxed(stack);
    }
    for (size_t i = first; i < stack->size(); ++i)
      torch::autograd::set_history((*stack)[i].toTensor(), node);
    for (const size_t i : op_->saved_results) gradient->keep_result((*stack)[first + i].toTensor());
  }

 private:
  // Forward mode would lose its tangents here without a word.
  static void refuse_tangents(const c10::OperatorHandle& handle, const at::Tensor& tensor) {
    if (!may_have_tangent(tensor)) return;
    const std::string name = handle.schema().name();
    const size_t colons = name.find("::");
    TORCH_CHECK(false, "torch.ops.", name.substr(0, colons), ".", name.substr(colons + 2),
                " does not go through forward mode, nor through torch.func.grad, vjp, jvp or "
                "jacrev, nor do these inside torch.compile; call the function of that name in "
                "kanerva_ext.ops, outside torch.compile");
  }

  const std::shared_ptr<const Operator> op_;
};

void register_autograd(const std::string& library, const std::string& name,
                       std::vector<size_t> differentiable, std::vector<size_t> saved_results,
                       pybind11::object with_tangents) {
  static std::list<torch::Library> registered;  // a kernel stays as long as its library
  auto& dispatcher = c10::Dispatcher::singleton();
  const std::string full_name = library + "::" + name;
  const auto forward = dispatcher.findSchemaOrThrow(full_name.c_str(), "");
  const auto backward = dispatcher.findSchemaOrThrow((full_name + "_backward").c_str(), "");
  const size_t arguments = forward.schema().arguments().size();
  const size_t results = forward.schema().returns().size();
  auto op = std::make_shared<Operator>(Operator{forward, backward, name, arguments, results,
                                                std::move(differentiable), std::move(saved_results),
                                                with_tangents.release()});
  registered.emplace_back(torch::Library::IMPL, library, c10::DispatchKey::Autograd, __FILE__,
                          __LINE__);
  registered.back().impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(
                                           std::make_unique<AutogradKernel>(std::move(op))));
}

}  // namespace
}  // namespace kanerva

PYBIND11_MODULE(_autograd, m) {
  m.doc() = "The Autograd kernels of the operators; see kanerva_ext/ops/_autograd.py.";
  m.def("register", &kanerva::register_autograd, pybind11::arg("library"), pybind11::arg("name"),
        pybind11::arg("differentiable"), pybind11::arg("saved_results"),
        pybind11::arg("with_tangents"));
  m.def("direct_call", &kanerva::direct_call, pybind11::arg("library"), pybind11::arg("name"),
        pybind11::arg("arguments"), pybind11::arg("backend"));
}
