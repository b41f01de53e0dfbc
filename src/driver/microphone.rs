//! The microphone, through cpal (ALSA on Linux).
//!
//! The callback runs on a thread of the sound system and only copies; see
//! [`audio_stream`](super::audio_stream). Which configuration is asked for: 16 kHz mono where the
//! card can, since nothing then has to be converted; else few channels and a usual rate.

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{
    Device, ErrorKind, FromSample, Sample, SampleFormat, SizedSample, StreamConfig,
    SupportedStreamConfig, SupportedStreamConfigRange,
};

use super::alsa_log::quietly;
use super::audio_stream::{AudioStream, Feed, Reports, Source, StreamError};
use crate::audio::Format;
use crate::clock::Clock;

/// Rates in the order in which they are wanted; all of them come down to 16 kHz well.
const RATES_HZ: [u32; 9] = [16_000, 48_000, 32_000, 44_100, 24_000, 22_050, 96_000, 192_000, 8_000];

/// Opens a sound card by name, `default` for the one that the system prefers, and starts to
/// listen.
///
/// # Errors
/// [`StreamError::UnknownDevice`]: no such name; those that exist are listed.
/// [`StreamError::Device`]: it is in use, not permitted, or has no format that can be used.
pub fn open(name: &str, clock: Clock) -> Result<AudioStream, StreamError> {
    quietly(|| listen(name, clock))
}

fn listen(name: &str, clock: Clock) -> Result<AudioStream, StreamError> {
    let failed = |reason: &dyn std::fmt::Display| StreamError::Device {
        name: name.to_owned(),
        reason: reason.to_string(),
    };
    let device = find(name)?;
    let ranges = device.supported_input_configs().map_err(|error| failed(&error))?;
    let config = choose(ranges).ok_or_else(|| failed(&"no format of it can be used"))?;
    let format = Format::new(config.sample_rate(), config.channels())?;
    AudioStream::with_source(format, clock, |feed| {
        let stream = start(&device, &config, feed).map_err(|error| failed(&error))?;
        stream.play().map_err(|error| failed(&error))?;
        Ok(Source::Device(Some(stream)))
    })
}

fn find(name: &str) -> Result<Device, StreamError> {
    let host = cpal::default_host();
    let found = if name == "default" {
        host.default_input_device()
    } else {
        let devices = host.input_devices().ok();
        devices.and_then(|mut devices| devices.find(|device| is_named(device, name)))
    };
    found.ok_or_else(|| {
        // As `[audio] input` takes them.
        let devices = host.input_devices().into_iter().flatten();
        let names: Vec<_> =
            devices.filter_map(|device| Some(device.id().ok()?.id().to_owned())).collect();
        let available = if names.is_empty() {
            "none: no sound card is there".to_owned()
        } else {
            names.join(", ")
        };
        StreamError::UnknownDevice { name: name.to_owned(), available }
    })
}

/// A device goes by its id (`plughw:CARD=1,DEV=0`) and by its description (`USB Microphone`).
pub(super) fn is_named(device: &Device, name: &str) -> bool {
    device.id().is_ok_and(|id| id.id() == name)
        || device.description().is_ok_and(|description| description.name() == name)
}

/// The best of what a card offers, `None` if nothing can be used.
fn choose(
    ranges: impl Iterator<Item = SupportedStreamConfigRange>,
) -> Option<SupportedStreamConfig> {
    let offered = ranges.flat_map(|range| {
        RATES_HZ.iter().filter_map(move |&rate| range.try_with_sample_rate(rate))
    });
    offered
        .filter_map(|config| Some((rank(&config)?, config)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, config)| config)
}

/// Smaller is better: the rate first, since resampling costs the most, then channels, then format.
fn rank(config: &SupportedStreamConfig) -> Option<(usize, u16, usize)> {
    let formats = [SampleFormat::I16, SampleFormat::F32, SampleFormat::I32];
    let format = formats.iter().position(|format| *format == config.sample_format())?;
    let rate = RATES_HZ.iter().position(|rate| *rate == config.sample_rate())?;
    Format::new(config.sample_rate(), config.channels()).ok()?;
    Some((rate, config.channels(), format))
}

fn start(
    device: &Device,
    config: &SupportedStreamConfig,
    feed: Feed,
) -> Result<cpal::Stream, cpal::Error> {
    let stream_config = config.config();
    match config.sample_format() {
        SampleFormat::I16 => capture::<i16>(device, stream_config, feed),
        SampleFormat::I32 => capture::<i32>(device, stream_config, feed),
        _ => capture::<f32>(device, stream_config, feed),
    }
}

fn capture<T>(
    device: &Device,
    config: StreamConfig,
    mut feed: Feed,
) -> Result<cpal::Stream, cpal::Error>
where
    T: SizedSample,
    f32: FromSample<T>,
{
    let reports = feed.reports();
    device.build_input_stream::<T, _, _>(
        config,
        move |data, _| feed.push(data.iter().map(|&sample| f32::from_sample(sample))),
        move |error| report(&reports, &error),
        None,
    )
}

/// A gap is counted, a refused priority is nothing to us, all else means that the card is gone.
fn report(reports: &Reports, error: &cpal::Error) {
    match error.kind() {
        ErrorKind::Xrun => reports.xrun(),
        ErrorKind::RealtimeDenied | ErrorKind::DeviceChanged => {}
        _ => reports.failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpal::SupportedBufferSize;

    fn range(
        channels: u16,
        low: u32,
        high: u32,
        format: SampleFormat,
    ) -> SupportedStreamConfigRange {
        SupportedStreamConfigRange::new(channels, low, high, SupportedBufferSize::Unknown, format)
    }

    fn chosen(ranges: Vec<SupportedStreamConfigRange>) -> Option<(u32, u16, SampleFormat)> {
        let config = choose(ranges.into_iter())?;
        Some((config.sample_rate(), config.channels(), config.sample_format()))
    }

    #[test]
    fn sixteen_khz_mono_is_taken_where_the_card_has_it() {
        let offered = vec![
            range(2, 8_000, 192_000, SampleFormat::F32),
            range(1, 8_000, 48_000, SampleFormat::F32),
            range(1, 8_000, 48_000, SampleFormat::I16),
            range(1, 8_000, 48_000, SampleFormat::U8),
        ];
        assert_eq!(chosen(offered), Some((16_000, 1, SampleFormat::I16)));
    }

    #[test]
    fn else_whatever_the_card_gives() {
        let only_48 = vec![range(2, 44_100, 48_000, SampleFormat::I32)];
        assert_eq!(chosen(only_48), Some((48_000, 2, SampleFormat::I32)));
        let only_cd = vec![range(2, 44_100, 44_100, SampleFormat::I16)];
        assert_eq!(chosen(only_cd), Some((44_100, 2, SampleFormat::I16)));
    }

    #[test]
    fn card_with_nothing_that_can_be_used_is_refused() {
        assert_eq!(chosen(vec![range(1, 16_000, 16_000, SampleFormat::U64)]), None);
        assert_eq!(chosen(vec![range(64, 16_000, 16_000, SampleFormat::I16)]), None);
        assert_eq!(chosen(vec![]), None);
    }
}
