# The sources of the core, one line an operator in each list. Paths are relative to csrc/.

# Compiled once per CPU instruction set (csrc/cpu/dispatch.h).
set(DEEPCRF_CPU_VECTOR_SOURCES
    cpu/range_box_edges.cpp
    cpu/pairwise_messages.cpp
    cpu/mean_field.cpp
    cpu/pairwise_nll.cpp
    cpu/permutohedral_lattice.cpp
    cpu/permutohedral_filter.cpp
    cpu/dense_crf.cpp
    cpu/gated_crf_loss.cpp)

# Compiled for processors with matrix tiles.
set(DEEPCRF_CPU_TILE_SOURCES
    cpu/pairwise_messages_tiles.cpp
    cpu/mean_field_tiles.cpp
    cpu/pairwise_nll_tiles.cpp)

# Compiled once, for the portable instruction set.
set(DEEPCRF_CPU_SOURCES
    cpu/dispatch.cpp)

set(DEEPCRF_CUDA_SOURCES
    cuda/range_box_edges.cu
    cuda/pairwise_messages.cu
    cuda/pairwise_messages_block.cu
    cuda/mean_field.cu
    cuda/pairwise_nll.cu
    cuda/pairwise_nll_chunk.cu
    cuda/permutohedral_lattice.cu
    cuda/permutohedral_filter.cu
    cuda/dense_crf.cu
    cuda/gated_crf_loss.cu)

set(DEEPCRF_BINDING_SOURCES
    bindings/module.cpp
    bindings/range_box_edges.cpp
    bindings/pairwise_messages.cpp
    bindings/pairwise_messages_block.cpp
    bindings/mean_field.cpp
    bindings/pairwise_nll.cpp
    bindings/pairwise_nll_chunk.cpp
    bindings/permutohedral_filter.cpp
    bindings/dense_crf.cpp
    bindings/gated_crf_loss.cpp)

list(TRANSFORM DEEPCRF_CPU_VECTOR_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
list(TRANSFORM DEEPCRF_CPU_TILE_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
list(TRANSFORM DEEPCRF_CPU_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
list(TRANSFORM DEEPCRF_CUDA_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
list(TRANSFORM DEEPCRF_BINDING_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

# Every instruction set and device places features in the same simplex, to the last bit.
set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/cpu/permutohedral_lattice.cpp
    PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/cuda/permutohedral_lattice.cu
    PROPERTIES COMPILE_OPTIONS $<IF:$<COMPILE_LANGUAGE:CUDA>,--fmad=false,-ffp-contract=off>)

# The bindings are compiled as one file (UNITY_BUILD of their target): pybind11's headers emit three seconds of code
# in each that includes them.
set_source_files_properties(${DEEPCRF_CPU_SOURCES} ${DEEPCRF_CUDA_SOURCES} ${CMAKE_CURRENT_LIST_DIR}/cuda/runtime.cu
    PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
