// Turns a function's statements into instructions: registers get places in the frame, constants
// too, labels become positions, and each opcode its handler.
#pragma once

#include "opcode.h"

namespace ptx {

struct Register {
  uint32_t place = 0;
  int width = 0;  // bytes; 0: a predicate
};

struct NameScope {
  std::map<std::string, Register> registers;
  struct Range {
    std::string prefix;
    int count;
    std::vector<Register> registers;
  };
  std::vector<Range> ranges;
  std::map<std::string, int64_t> parameters, locals;
  std::map<std::string, std::string> shared;  // name -> its name in the module
};

class Decoder : public BodyVisitor, public Builder {
 public:
  Decoder(Code& code, const Function& f) : code_(code), function_(f), module_(*f.module) {
    scopes_.emplace_back();
    code.function = &f;
    code.module = f.module;
    place_parameters();
  }

  void finish();

  // BodyVisitor
  void open_scope() override { scopes_.emplace_back(); }
  void close_scope() override {
    if (scopes_.size() > 1) scopes_.pop_back();
  }
  void label(const std::string& name, int) override {
    labels_[name] = int(code_.instructions.size());
  }
  void registers(const std::string& type, const std::string& name, int count, int line) override;
  void variable(const std::string& space, const Variable& v, int line) override;
  void branch_targets(const std::string& name, std::vector<std::string> labels) override {
    branch_targets_[name] = std::move(labels);
  }
  void statement(const Statement& s) override;

  // Builder
  uint32_t target(const Operand& o, int bytes) override;
  uint32_t source(const Operand& o, Type type) override;
  int width(const Operand& o) override;
  void address(const Operand& o, Instruction& i) override;
  bool special(const Operand& o, Instruction& i) override;
  [[noreturn]] void fail(const std::string& what) override {
    throw Unsupported(module_.name + ", line " + std::to_string(now_->line) + ": " +
                      module_.line_text(now_->line) + ": " + what);
  }

 private:
  void place_parameters();
  Register allocate(int width);
  const Register* find_register(const std::string& name) const;
  uint32_t constant(uint64_t bits, int width);
  bool find_parameter(const std::string& name, int64_t& place, bool& of_kernel) const;
  bool symbol_address(const std::string& name, uint64_t& address);
  void control(Opcode& opcode, const Statement& s, Instruction& i);
  void call(const Statement& s, Instruction& i);
  void barrier(Opcode& opcode, const Statement& s, Instruction& i);
  void cluster_barrier(Opcode& opcode, const Statement& s, Instruction& i);
  void mark_blocks();
  void mark_copies();

  Code& code_;
  const Function& function_;
  Module& module_;
  const Statement* now_ = nullptr;
  std::vector<NameScope> scopes_;
  std::map<std::string, int> labels_;
  std::map<std::string, std::vector<std::string>> branch_targets_;
  std::vector<std::pair<size_t, std::string>> branches_, tables_;  // instruction, label
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;
  uint32_t next_predicate_ = 0;
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace ptx
