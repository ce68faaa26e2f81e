// Errors of the compiled core. Every check of an argument goes through DEEPCRF_CHECK.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace deepcrf {

// A bad argument; Python sees a ValueError.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A backend that this build or this machine lacks, or that failed; Python sees a RuntimeError.
class BackendError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace deepcrf

// DEEPCRF_CHECK(size > 0, "size must be positive, got ", size);
#define DEEPCRF_CHECK(condition, ...)                              \
  do {                                                             \
    if (!(condition)) {                                            \
      throw ::deepcrf::Error(::deepcrf::concatenate(__VA_ARGS__)); \
    }                                                              \
  } while (false)
