// What every implementation of the permutohedral lattice must compute to the last bit: where
// features lie in the hyperplane of the lattice, and how far they may reach.
#pragma once

#include <cmath>
#include <cstdint>

namespace deepcrf {

// Coordinates beyond this have too few bits left of the place within their simplex.
constexpr double kLargestCoordinate = 1 << 19;

// What feature i of d is multiplied by so that the blur has a standard deviation of one feature
// unit (Adams et al., section 3.2).
inline float lattice_embedding_scale(int64_t i, int64_t num_dims) {
  const float deviation =
      static_cast<float>(std::sqrt(2.0 / 3.0) * static_cast<double>(num_dims + 1));
  const double length = std::sqrt(static_cast<double>((i + 2) * (i + 1)));
  return static_cast<float>(1.0 / length * static_cast<double>(deviation));
}

// Scales the blur so that an isolated point on a vertex of the lattice keeps its value.
inline double lattice_scale(int64_t num_dims) {
  return 1 / (1 + std::ldexp(1.0, -static_cast<int>(num_dims)));
}

}  // namespace deepcrf
