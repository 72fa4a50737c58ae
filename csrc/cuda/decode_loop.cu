// A whole decode as one graph: WHILE (rows are left to refine) { the captured step; look at the flags }.
//
// The WHILE node's body is a clone of the step's graph, followed by one warp that reads the flags the step wrote and sets the
// condition. Raw pointers and a stream; the host calls this through ctypes, so every function is extern "C" and returns a cudaError_t.

#include <cstdint>
#include <cuda_runtime.h>

namespace {

constexpr unsigned kWarp = 32;

// Continues while the step counter is below bounds[0] and more than bounds[1] rows are not done.
__global__ void look_at_flags(cudaGraphConditionalHandle condition, const bool* done, int rows, const int64_t* step,
                              const int64_t* bounds) {
    int live = 0;
    for (int row = threadIdx.x; row < rows; row += kWarp) live += !done[row];
    for (int offset = kWarp / 2; offset > 0; offset /= 2) live += __shfl_down_sync(~0u, live, offset);
    if (threadIdx.x == 0) cudaGraphSetConditional(condition, *step < bounds[0] && live > bounds[1] ? 1u : 0u);
}

cudaError_t add_loop(cudaGraph_t graph, cudaGraph_t step_graph, const bool* done, int rows, const int64_t* step, const int64_t* bounds) {
    cudaGraphConditionalHandle condition;
    // The condition is true at every launch, so one step is always taken; on rows that are done it changes nothing.
    cudaError_t error = cudaGraphConditionalHandleCreate(&condition, graph, 1, cudaGraphCondAssignDefault);
    if (error != cudaSuccess) return error;

    cudaGraphNodeParams loop{};
    loop.type = cudaGraphNodeTypeConditional;
    loop.conditional.handle = condition;
    loop.conditional.type = cudaGraphCondTypeWhile;
    loop.conditional.size = 1;
    cudaGraphNode_t loop_node;
#if CUDART_VERSION >= 13000
    error = cudaGraphAddNode(&loop_node, graph, nullptr, nullptr, 0, &loop);
#else
    error = cudaGraphAddNode(&loop_node, graph, nullptr, 0, &loop);
#endif
    if (error != cudaSuccess) return error;

    cudaGraph_t body = loop.conditional.phGraph_out[0];
    cudaGraphNode_t step_node;
    error = cudaGraphAddChildGraphNode(&step_node, body, nullptr, 0, step_graph);
    if (error != cudaSuccess) return error;

    void* arguments[] = {&condition, &done, &rows, &step, &bounds};
    cudaKernelNodeParams look{};
    look.func = reinterpret_cast<void*>(look_at_flags);
    look.gridDim = dim3(1);
    look.blockDim = dim3(kWarp);
    look.kernelParams = arguments;
    cudaGraphNode_t look_node;
    return cudaGraphAddKernelNode(&look_node, body, &step_node, 1, &look);
}

}  // namespace

extern "C" {

// Builds the executable loop around `step_graph`, which is cloned and may be destroyed afterwards; its memory must stay.
int lad_loop_create(int device, void* step_graph, const void* done, int rows, const void* step, const void* bounds, void** executable) {
    cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    cudaGraph_t graph;
    error = cudaGraphCreate(&graph, 0);
    if (error != cudaSuccess) return error;
    error = add_loop(graph, static_cast<cudaGraph_t>(step_graph), static_cast<const bool*>(done), rows,
                     static_cast<const int64_t*>(step), static_cast<const int64_t*>(bounds));
    if (error == cudaSuccess) error = cudaGraphInstantiate(reinterpret_cast<cudaGraphExec_t*>(executable), graph, 0);
    const cudaError_t destroyed = cudaGraphDestroy(graph);
    return error != cudaSuccess ? error : destroyed;
}

// Enqueues the whole decode; returns at once.
int lad_loop_launch(void* executable, void* stream) {
    return cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable), static_cast<cudaStream_t>(stream));
}

int lad_loop_destroy(void* executable) { return cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable)); }

const char* lad_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // extern "C"
