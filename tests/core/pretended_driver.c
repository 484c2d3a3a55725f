/* What PyTorch asks the CUDA runtime and driver about tensors that have no memory, for machines without a GPU.
   Built and preloaded by test_fake_cuda.py. */
#define NOTHING(name) int name() { return 0; }

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *state) { *state = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)8; return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = (void *)8; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cudaGetDeviceProperties(char *properties, int device) {
    *(int *)(properties + 360) = 9; /* compute capability 9.0: major follows name, sizes and limits */
    return 0;
}
NOTHING(cudaSetDevice)
NOTHING(cudaGetLastError)
NOTHING(cudaPeekAtLastError)
NOTHING(cudaStreamQuery)
NOTHING(cudaEventQuery)
NOTHING(cudaEventRecord)
NOTHING(cudaEventDestroy)
NOTHING(cudaStreamWaitEvent)
NOTHING(cudaStreamSynchronize)
NOTHING(cudaDeviceSynchronize)
