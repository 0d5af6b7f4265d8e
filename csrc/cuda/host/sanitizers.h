// What AddressSanitizer and ThreadSanitizer must be told of fibers; nothing without them.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_THREAD__)
#define KANERVA_HOST_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define KANERVA_HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KANERVA_HOST_TSAN 1
#elif __has_feature(address_sanitizer)
#define KANERVA_HOST_ASAN 1
#endif
#endif

// For the scheduler, whose state all fibers touch: ThreadSanitizer must see the kernels' accesses
// and none of its own.
#if defined(KANERVA_HOST_TSAN)
#define KANERVA_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define KANERVA_UNSEEN
#endif

#if defined(KANERVA_HOST_TSAN)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#elif defined(KANERVA_HOST_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(void const volatile* address, size_t size);
}
#endif

namespace kanerva::cuda::host {

// A sanitizer's view of a fiber: ThreadSanitizer's fiber or AddressSanitizer's fake stack.
struct Sanitized {
  void* handle = nullptr;
};

#if defined(KANERVA_HOST_TSAN) || defined(KANERVA_HOST_ASAN)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

#if defined(KANERVA_HOST_TSAN)
KANERVA_UNSEEN inline void this_fiber(Sanitized& s) { s.handle = __tsan_get_current_fiber(); }
KANERVA_UNSEEN inline void create_fiber(Sanitized& s) { s.handle = __tsan_create_fiber(0); }
KANERVA_UNSEEN inline void destroy_fiber(Sanitized& s) { __tsan_destroy_fiber(s.handle); }
KANERVA_UNSEEN inline void acquire(void* order) { __tsan_acquire(order); }
KANERVA_UNSEEN inline void release(void* order) { __tsan_release(order); }
// In the name of another fiber, which never goes on.
KANERVA_UNSEEN inline void release_for(Sanitized& other, Sanitized& self, void* order) {
  constexpr unsigned no_sync = 1;
  __tsan_switch_to_fiber(other.handle, no_sync);
  __tsan_release(order);
  __tsan_switch_to_fiber(self.handle, no_sync);
}
#else
inline void this_fiber(Sanitized&) {}
inline void create_fiber(Sanitized&) {}
inline void destroy_fiber(Sanitized&) {}
inline void acquire(void*) {}
inline void release(void*) {}
inline void release_for(Sanitized&, Sanitized&, void*) {}
#endif

// Just before the switch to a fiber with the given stack; `last` where the old one never goes on.
#if defined(KANERVA_HOST_TSAN)
// always_inline: nothing may run between the sanitizer's switch and the real one.
__attribute__((always_inline, no_sanitize("thread"))) inline void leave_fiber(Sanitized&, bool,
                                                                              Sanitized& to,
                                                                              const void*, size_t) {
  constexpr unsigned no_sync = 1;
  __tsan_switch_to_fiber(to.handle, no_sync);
}
#elif defined(KANERVA_HOST_ASAN)
inline void leave_fiber(Sanitized& from, bool last, Sanitized&, const void* stack, size_t size) {
  __sanitizer_start_switch_fiber(last ? nullptr : &from.handle, stack, size);
}
#else
inline void leave_fiber(Sanitized&, bool, Sanitized&, const void*, size_t) {}
#endif

// Just after the switch; gives the stack of the fiber that was left.
#if defined(KANERVA_HOST_ASAN)
inline void enter_fiber(Sanitized& self, const void** stack, size_t* size) {
  __sanitizer_finish_switch_fiber(self.handle, stack, size);
}
#else
inline void enter_fiber(Sanitized&, const void**, size_t*) {}
#endif

}  // namespace kanerva::cuda::host
