"""Peaks of known cards: TFLOP/s of dense arithmetic, from the vendor's data sheets (figures "with sparsity" halved).

bf16 multiplies with tensor cores and adds up in 32 bits; tf32 takes 32-bit floats to tensor cores, rounded; f32 is
the ordinary cores.
"""

# Name as nvidia-smi prints it (the longest that fits counts): bf16, tf32, f32, GB/s of memory, data sheet.
CARDS = {
    "NVIDIA B200": (2250, 1100, 75, 8000, "NVIDIA Blackwell architecture, HGX B200"),
    "NVIDIA H200": (989.5, 494.7, 66.9, 4800, "NVIDIA H200 Tensor Core GPU, SXM"),
    "NVIDIA H200 NVL": (835.5, 417.7, 60, 4800, "NVIDIA H200 Tensor Core GPU, NVL"),
    "NVIDIA GH200": (989.5, 494.7, 66.9, 4000, "NVIDIA GH200 Grace Hopper Superchip"),
    "NVIDIA H100 80GB HBM3": (989.5, 494.7, 66.9, 3350, "NVIDIA H100 Tensor Core GPU, SXM"),
    "NVIDIA H100 NVL": (835.5, 417.7, 60, 3900, "NVIDIA H100 Tensor Core GPU, NVL"),
    "NVIDIA H100 PCIe": (756.5, 378, 51.2, 2000, "NVIDIA H100 Tensor Core GPU, PCIe"),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5, 2039, "NVIDIA A100 Tensor Core GPU"),
    "NVIDIA A100-SXM4-40GB": (312, 156, 19.5, 1555, "NVIDIA A100 Tensor Core GPU"),
    "NVIDIA A100 80GB PCIe": (312, 156, 19.5, 1935, "NVIDIA A100 Tensor Core GPU"),
    "NVIDIA A100-PCIE-40GB": (312, 156, 19.5, 1555, "NVIDIA A100 Tensor Core GPU"),
    "NVIDIA A10": (125, 62.5, 31.2, 600, "NVIDIA A10 Tensor Core GPU"),
    "NVIDIA A40": (149.7, 74.8, 37.4, 696, "NVIDIA A40"),
    "NVIDIA L4": (121, 60, 30.3, 300, "NVIDIA L4 Tensor Core GPU"),
    "NVIDIA L40S": (362, 183, 91.6, 864, "NVIDIA L40S"),
    "NVIDIA GeForce RTX 3090": (71, 35.6, 35.6, 936, "NVIDIA Ampere GA102 architecture"),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6, 1008, "NVIDIA Ada GPU architecture"),
    "NVIDIA GeForce RTX 5090": (209.5, 104.8, 104.8, 1792, "NVIDIA RTX Blackwell GPU architecture"),
}


def of_card(name):
    """Peaks of a card by its name; None where it is not known."""
    known = [card for card in CARDS if name == card or name.startswith(card + " ")]
    if not known:
        return None
    bf16, tf32, f32, memory, sheet = CARDS[max(known, key=len)]
    return {"bf16": bf16, "tf32": tf32, "f32": f32, "memory_gb_per_s": memory, "source": f"data sheet: {sheet}"}
