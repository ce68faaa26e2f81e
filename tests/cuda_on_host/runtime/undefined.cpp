// What the compiler's checks of undefined behaviour report: -fsanitize=alignment,bounds,... call
// these handlers.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "state.h"

namespace {

struct SourceLocation {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
};

struct TypeName {
  std::uint16_t kind;
  std::uint16_t info;
  char text[1];
};

// The start of the data of every handler.
struct Common {
  SourceLocation location;
  const TypeName* type;
};

[[noreturn]] void stop(const Common* data, const std::string& what) {
  const std::string text = what + " (" + data->type->text + "), at " + data->location.file + ":" +
                           std::to_string(data->location.line);
  if (cuda_on_host::machine.current != nullptr) cuda_on_host::fail(text);
  std::fprintf(stderr, "cuda_on_host: in host code: %s\n", text.c_str());
  std::abort();
}

}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1(void* data, std::uintptr_t pointer) {
  const auto* common = static_cast<const Common*>(data);
  stop(common, pointer == 0 ? "null pointer" : "misaligned access");
}
void __ubsan_handle_out_of_bounds(void* data, std::uintptr_t index) {
  stop(static_cast<const Common*>(data),
       "out of bounds: array index " + std::to_string(static_cast<std::intptr_t>(index)));
}
void __ubsan_handle_add_overflow(void* data, std::uintptr_t, std::uintptr_t) {
  stop(static_cast<const Common*>(data), "signed overflow in +");
}
void __ubsan_handle_sub_overflow(void* data, std::uintptr_t, std::uintptr_t) {
  stop(static_cast<const Common*>(data), "signed overflow in -");
}
void __ubsan_handle_mul_overflow(void* data, std::uintptr_t, std::uintptr_t) {
  stop(static_cast<const Common*>(data), "signed overflow in *");
}
void __ubsan_handle_negate_overflow(void* data, std::uintptr_t) {
  stop(static_cast<const Common*>(data), "signed overflow in negation");
}
void __ubsan_handle_divrem_overflow(void* data, std::uintptr_t, std::uintptr_t) {
  stop(static_cast<const Common*>(data), "division by zero or signed overflow in division");
}
// What a device makes of these is defined, but not what a processor makes of them.
void __ubsan_handle_shift_out_of_bounds(void* data, std::uintptr_t, std::uintptr_t) {
  stop(static_cast<const Common*>(data), "shift by more bits than there are, or of a sign");
}
void __ubsan_handle_float_cast_overflow(void* data, std::uintptr_t) {
  stop(static_cast<const Common*>(data), "conversion to an integer that cannot hold the value");
}
}
