// Scratch memory of a thread: a stack of aligned blocks that is kept between calls.
// Defined in workspace.cpp: code shared by all instruction sets must not be inline here, or the
// linker could keep a copy that the processor cannot run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kanerva {

class Workspace {
 public:
  // Everything taken inside a scope is given back at its end.
  class Scope {
   public:
    explicit Scope(Workspace& workspace);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    // n elements, 64-byte aligned, not initialised; never null. Throws std::bad_alloc.
    template <class T>
    T* take(int64_t n) {
      return static_cast<T*>(take_bytes(size_t(n) * sizeof(T)));
    }

   private:
    void* take_bytes(size_t bytes);
    Workspace& workspace_;
    size_t block_, used_;
  };

  static Workspace& of_thread();
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

 private:
  static constexpr size_t kBlocks = 64;
  struct Block {
    char* data;
    size_t size;
  };
  void trim();
  static void release(const Block& block);

  Block blocks_[kBlocks] = {};
  size_t count_ = 0, block_ = 0, used_ = 0, depth_ = 0;
};

}  // namespace kanerva
