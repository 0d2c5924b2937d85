// Runs the kernel on the CPU, as a library that Python loads.

#include <cross_entropy_cuda.cu>

extern "C" void launch(int clusters, const char* logits, char* grad, float* losses, const i64* y,
                       const float* target_weight, const float* upstream, int n, int vocab,
                       i64 logits_stride, i64 grad_stride, float z_loss) {
  gridDim.x = clusters * CLUSTER;
  for (int number = 0; number < clusters; ++number) {
    Cluster cluster;
    std::vector<std::thread> threads;
    for (int i = 0; i < CLUSTER * WARPS * 32; ++i)
      threads.emplace_back([=, &cluster] {
        cluster_of_thread = &cluster;
        blockIdx.x = number * CLUSTER + i / (WARPS * 32);
        threadIdx.x = i % (WARPS * 32);
        rows_kernel(logits, grad, losses, y, target_weight, upstream, n, vocab, logits_stride,
                    grad_stride, z_loss);
      });
    for (std::thread& thread : threads) thread.join();
    for (std::thread& copy : cluster.copies) copy.join();
  }
}
