// One kernel for torch serves every operator: it walks the fields of the arguments.
#pragma once

#include <array>
#include <string>

#include "tensors.h"

namespace kanerva::ops {

// A string argument of an operator. PyTorch's own conversion to std::string (up to 2.13) leaks one
// at every call.
inline std::string take_string(StringHandle handle) {
  size_t length = 0;
  const char* data = nullptr;
  KANERVA_TORCH_CHECK(torch_string_length(handle, &length));
  KANERVA_TORCH_CHECK(torch_string_c_str(handle, &data));
  const std::string text(data, length);
  KANERVA_TORCH_CHECK(torch_delete_string(handle));
  return text;
}

// A call as its fields() find it. Walking takes the arguments from torch's stack, so that none
// leaks; what is wrong with them is said after it.
class Call {
 public:
  Call(StableIValue* stack, uint64_t arguments) : stack_(stack), arguments_(arguments) {}

  void memory(View& v, const char* name) { memory_ = &take<Tensor>(v, name, "BKC", Kind::any); }
  void steps(View& v, const char* name, const char* shape) {
    steps_ = &take<Tensor>(v, name, shape, Kind::any);
  }
  void data(View& v, const char* name, const char* shape) {
    take<Tensor>(v, name, shape, Kind::any);
  }
  void state(View& v, const char* name, const char* shape) {
    take<Tensor>(v, name, shape, Kind::state);
  }
  void maybe(View& v, const char* name, const char* shape) {
    take<OptionalTensor>(v, name, shape, Kind::state);
  }
  void mask(View& v) { take<OptionalTensor>(v, "mask", "RT", Kind::mask); }
  void unread(const char*) { pop<Tensor>(); }

  void number(int64_t& x, const char* name, int64_t least) {
    x = pop<int64_t>();
    if (x < least)
      complain(name + (" must be at least " + std::to_string(least)) + ", got " +
               std::to_string(x));
  }
  void method(WriteMethod& x) {
    const std::string name = take_string(pop<StringHandle>());
    if (!find_method(name, x)) complain(kMethods + name);
  }
  void packing(Packing& p) { packing_ = &p, bounds_ = pop<OptionalTensor>(); }

  void check(bool good, const char* message) {
    if (!good) complain(message);
  }
  bool has(const View& v) const {
    const auto is = [&](const Field& each) { return each.view == &v; };
    return std::find_if(fields_.begin(), fields_.begin() + taken_, is)->tensor.has_value();
  }

  void result(View& v, const char* shape) { add({&v, "", shape, Kind::state}); }
  void result(View& v, const char* shape, const View& like) {
    add({&v, "", shape, Kind::any}).like = &like;
  }
  void result_of(const View& given, View& v, const char* shape) {
    result(v, has(given) ? shape : nullptr);
  }

  // Makes the views and the results, once all of it is found to be as it must.
  template <class Backend>
  Backend bind(Sizes& n, uint64_t results) {
    STD_TORCH_CHECK(next_ == arguments_ && added_ - taken_ == results, "the schema has ",
                    arguments_, " arguments and ", results, " results, the kernel ", next_, " and ",
                    added_ - taken_);
    const Tensor& mean = *memory_->tensor;
    const Backend on(mean);
    STD_TORCH_CHECK(complaint_.empty(), complaint_);
    check_dimensions(mean, memory_->name);
    if (steps_ != nullptr) check_dimensions(*steps_->tensor, steps_->name);
    n = {mean.size(0), steps_ != nullptr ? steps_->tensor->size(1) : 0, mean.size(1), mean.size(2)};
    const int64_t rows = packing_ != nullptr ? bind_packing(on, n.B) : n.B;
    const Dtype dtype = state_dtype(mean, memory_->name);
    for (size_t i = 0; i < added_; ++i) {
      Field& f = fields_[i];
      if (i < taken_) {
        if (!f.tensor.has_value()) continue;
        const Shape shape = shape_of(f.shape, n, rows);
        *f.view = f.kind == Kind::mask  ? mask_view(on, f.tensor, shape)
                  : f.kind == Kind::any ? view(on, *f.tensor, f.name, shape)
                                        : state_view(on, *f.tensor, f.name, shape, dtype);
      } else if (f.shape != nullptr) {
        const Dtype own = f.like != nullptr ? f.like->dtype : dtype;
        f.tensor = output(on, *f.view, own, shape_of(f.shape, n, rows));
      } else {
        View none;
        f.tensor = output(on, none, dtype, {0});
      }
    }
    return on;
  }

  void give_results() const {
    for (size_t i = taken_; i < added_; ++i)
      stack_[i - taken_] = torch::stable::detail::from(*fields_[i].tensor);
  }

 private:
  enum class Kind { any, state, mask };

  // An argument or a result.
  struct Field {
    View* view = nullptr;
    const char* name = "";
    const char* shape = "";  // null: an empty result
    Kind kind = Kind::any;
    const View* like = nullptr;  // whose dtype a result has; null: that of the state
    OptionalTensor tensor = {};
  };

  template <class T>
  T pop() {
    STD_TORCH_CHECK(next_ < arguments_, "the schema has only ", arguments_, " arguments");
    return torch::stable::detail::to<T>(stack_[next_++]);
  }

  Field& add(Field field) {
    STD_TORCH_CHECK(added_ < fields_.size(), "more than ", added_, " fields");
    return fields_[added_++] = std::move(field);
  }

  template <class T>
  const Field& take(View& v, const char* name, const char* shape, Kind kind) {
    Field& field = add({&v, name, shape, kind});
    field.tensor = pop<T>();
    taken_ = added_;
    return field;
  }

  void complain(const std::string& message) {
    if (complaint_.empty()) complaint_ = message;
  }

  // The rows that the sequences of so many memories lie in.
  template <class Backend>
  int64_t bind_packing(const Backend& on, int64_t memories) const {
    if (!bounds_.has_value()) return memories;
    const Tensor& bounds = *bounds_;
    on.check_device(bounds, "cu_seqlens");
    STD_TORCH_CHECK(
        bounds.scalar_type() == ScalarType::Long && bounds.dim() == 1 && bounds.size(0) >= 2,
        "cu_seqlens must be int64 of shape (N + 1,) with N at least 1, got ",
        torch::headeronly::toString(bounds.scalar_type()), " of shape ",
        shape_text(bounds.sizes()));
    *packing_ = {static_cast<const int64_t*>(bounds.data_ptr()), bounds.stride(0),
                 bounds.size(0) - 1};
    STD_TORCH_CHECK(memories % packing_->count == 0, "mean must hold a state for each of the ",
                    packing_->count, " sequences of every row, got ", memories, " states");
    return memories / packing_->count;
  }

  static Shape shape_of(const char* letters, const Sizes& n, int64_t rows) {
    Shape shape{};
    for (; *letters != '\0'; ++letters)
      shape.add(*letters == 'R'   ? rows
                : *letters == 'B' ? n.B
                : *letters == 'T' ? n.T
                : *letters == 'K' ? n.K
                                  : n.C);
    return shape;
  }

  StableIValue* stack_;
  const uint64_t arguments_;
  uint64_t next_ = 0;
  std::array<Field, 32> fields_;
  size_t taken_ = 0, added_ = 0;  // arguments, and with them results
  const Field* memory_ = nullptr;
  const Field* steps_ = nullptr;
  Packing* packing_ = nullptr;
  OptionalTensor bounds_;
  std::string complaint_;
};

template <class Backend, class Args>
void call(StableIValue* stack, uint64_t arguments, uint64_t results) {
  Args args;
  Call found(stack, arguments);
  args.fields(found);
  const Backend on = found.bind<Backend>(args.n, results);
  on.run(args);
  found.give_results();
}

}  // namespace kanerva::ops
