/* step.cu - a step of decoding as a CUDA graph: its hundreds of small kernels start without the host.
 *
 * What changes from step to step lies at fixed places that begin() and replay() fill: the token, its position, the page
 * tables, and where each layer writes its keys and values.
 */
#include "device.h"

void step_forget(struct Device *d)
{
    if (d->step) cudaGraphExecDestroy(d->step);
    d->step = NULL;
}

int cuda_record(struct Device *d, bool on)
{
    cudaGraph_t graph = NULL;
    if (on) {
        step_forget(d);
        CUDA_TRY(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
        d->recording = true;
        d->noted = 0;
        return PC_OK;
    }
    d->recording = false;
    CUDA_TRY(cudaStreamEndCapture(d->stream, &graph));
    cudaError_t e = cudaGraphInstantiate(&d->step, graph, 0);
    cudaGraphDestroy(graph);
    return e == cudaSuccess ? PC_OK : cuda_fail(e, "recording a step");
}

int cuda_replay(struct Device *d, const struct KvWrite *writes, int n, float *logits)
{
    Range range("decode step");
    if (n != d->noted || n > WRITES)
        return err_set(PC_EINTERNAL, "%d writes for a step that was recorded with %d", n, d->noted);
    TRY(upload_writes(d, writes, n));
    CUDA_TRY(cudaGraphLaunch(d->step, d->stream));
    return dev_download(d, logits, d->s.logits, (size_t)d->model->output.rows * sizeof(float));
}
