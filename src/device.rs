//! The device that jobs are trained on: what may be asked for, and how it is spelt in flags and
//! variables. What `auto` comes to is decided in `train::device`.

use std::fmt;
use std::str::FromStr;

/// Where a run is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The machine's processor.
    Cpu,
    /// The CUDA device of this number, from 0.
    Cuda(usize),
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSetting {
    /// The first CUDA device where there is one, the processor elsewhere.
    Auto,
    /// This one and no other.
    Exactly(Device),
}

/// A text that names no device.
#[derive(Debug, thiserror::Error)]
#[error("{found:?} names no device; there are {known}")]
pub struct UnknownDevice {
    found: String,
    known: &'static str,
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
        }
    }
}

/// `cpu`, `cuda` (the first) or `cuda:N`.
fn named(text: &str) -> Option<Device> {
    match text {
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda(0)),
        _ => {
            let number = text.strip_prefix("cuda:")?;
            // Not "+1".
            let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse().ok().filter(|_| is_number).map(Device::Cuda)
        }
    }
}

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let known = "cpu, cuda and cuda:N (N = 0, 1 …)";
        named(text).ok_or_else(|| UnknownDevice { found: text.to_owned(), known })
    }
}

impl FromStr for DeviceSetting {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let known = "auto, cpu, cuda and cuda:N (N = 0, 1 …)";
        let device = named(text).ok_or_else(|| UnknownDevice { found: text.to_owned(), known })?;
        Ok(Self::Exactly(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reads_as_it_is_written_and_nothing_else_does() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(11)] {
            assert_eq!(device.to_string().parse::<Device>().expect("reads"), device);
            let setting: DeviceSetting = device.to_string().parse().expect("reads");
            assert_eq!(setting, DeviceSetting::Exactly(device));
        }
        assert_eq!("cuda".parse::<Device>().expect("reads"), Device::Cuda(0));
        assert_eq!("auto".parse::<DeviceSetting>().expect("reads"), DeviceSetting::Auto);
        assert!("auto".parse::<Device>().is_err());
        for text in ["", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:0 ", "cuda 0"] {
            let error = text.parse::<DeviceSetting>().expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("auto, cpu, cuda"));
        }
    }
}
