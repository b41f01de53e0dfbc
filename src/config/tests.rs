use super::*;

fn problems(text: &str) -> Vec<String> {
    problems_with(text, &[])
}

fn problems_with(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    match load("hark.toml", text, environment) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

fn config(text: &str) -> Config {
    load("hark.toml", text, std::iter::empty()).unwrap().config
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = config("");
    assert_eq!(config.device.id, None);
    assert_eq!(config.audio, AudioInput::Device("default".into()));
    assert_eq!(config.voice.keyphrases.len(), 4);
    assert_eq!(config.uplink.window, 32);
    assert_eq!(config.ingest.socket, Some("/run/hark/ingest.sock".into()));
}

#[test]
fn all_errors_are_reported_together_with_line_and_key() {
    let text = "[uplink]\nurl = \"http://x\"\nwindow = 0\n\n[voice]\ncooldown = \"soon\"\n";
    assert_eq!(
        problems(text),
        [
            "hark.toml:2: uplink.url is `http://x`; write mqtt://HOST[:PORT], or mqtts, ws or wss",
            "hark.toml:3: uplink.window is 0; a whole number from 1 to 1000",
            "hark.toml:6: voice.cooldown is `soon`; write a whole number and ms, s, m, h or d, such as \"5s\"",
        ]
    );
}

#[test]
fn an_unknown_key_is_an_error_that_lists_the_known_ones() {
    let found = problems("[audio]\ninputs = \"none\"\n");
    assert_eq!(found, ["hark.toml:2: audio.inputs is unknown; [audio] has: input"]);
    assert!(problems("[extra]\n")[0].contains("is unknown"));
}

#[test]
fn what_this_version_cannot_honour_is_refused_and_not_ignored() {
    for text in
        ["[uplink]\nmode = \"binary\"\nprotocol = \"3.1.1\"\n", "[ops]\nlisten = \"localhost\"\n"]
    {
        assert_eq!(problems(text).len(), 1, "{text}: {:?}", problems(text));
    }
}

#[test]
fn a_lane_may_ask_for_receipts_and_say_how_long_it_waits() {
    let text = "[lanes.alert]\nconfirm = \"receipt\"\nreceipt_timeout = \"5s\"\n[uplink]\nmode = \"binary\"\n";
    let config = config(text);
    let alert = Receipts { wanted: true, timeout: Duration::from_secs(5) };
    let other = Receipts { wanted: false, timeout: Duration::from_secs(60) };
    assert_eq!(config.receipts, [alert, other, other]);
    assert!(config.uplink.binary);
    assert_eq!(problems("[lanes.alert]\nconfirm = \"both\"\n").len(), 1);
}

#[test]
fn the_way_to_the_broker_is_read_with_everything_that_belongs_to_it() {
    let uplink = config(
        "[uplink]\nurl = \"mqtts://a\"\nfallback_urls = [\"wss://b/x\", \"mqtt://c\"]\n\
         ca_file = \"/ca.pem\"\ncert_file = \"/c.pem\"\nkey_file = \"/k.pem\"\ncrl_file = \"/r.pem\"\n\
         alpn = \"mqtt\"\nproxy = \"http://flat@p:3128\"\nproxy_password_file = \"/p\"\n",
    )
    .uplink;
    assert_eq!(uplink.fallback_urls, ["wss://b/x", "mqtt://c"]);
    assert_eq!(uplink.crl_file, Some("/r.pem".into()));
    assert_eq!(
        (uplink.alpn.as_str(), uplink.proxy.as_deref()),
        ("mqtt", Some("http://flat@p:3128"))
    );
}

#[test]
fn a_setting_of_the_way_that_would_have_no_effect_is_refused() {
    for (text, message) in [
        ("ca_file = \"/ca.pem\"\n", "2: uplink.ca_file has no effect: no URL is mqtts"),
        ("alpn = \"mqtt\"\n", "2: uplink.alpn has no effect"),
        ("url = \"mqtts://b\"\ncert_file = \"/c\"\n", "3: uplink.cert_file needs key_file"),
        ("url = \"wss://b\"\nkey_file = \"/k\"\n", "3: uplink.key_file needs cert_file"),
        ("proxy = \"http://p\"\nproxy_password_file = \"/p\"\n", "3: uplink.proxy_password_file"),
        ("proxy = \"socks://p\"\n", "2: uplink.proxy is `socks://p`"),
        ("fallback_urls = \"mqtt://b\"\n", "2: uplink.fallback_urls must be an array"),
        ("fallback_urls = [\"b\"]\n", "2: uplink.fallback_urls is `b`"),
        ("fallback_urls = [1]\n", "2: uplink.fallback_urls holds something"),
    ] {
        let found = problems(&format!("[uplink]\n{text}"));
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains(message), "{text}: {found:?}");
    }
}

#[test]
fn a_syntax_error_has_its_line() {
    let found = problems("[device]\nid = \n");
    assert!(found[0].starts_with("hark.toml:2: is no TOML"), "{found:?}");
}

#[test]
fn the_environment_overrides_the_file_and_is_named_in_errors() {
    let environment =
        [("HARK__UPLINK__WINDOW", "0"), ("HARK__DEVICE__ID", "flat/12"), ("HOME", "/x")];
    let found = problems_with("[uplink]\nwindow = 5\n", &environment);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("environment variable HARK__DEVICE__ID: device.id"), "{found:?}");
    assert!(found[1].starts_with("environment variable HARK__UPLINK__WINDOW"), "{found:?}");
    let loaded = load("f", "", [("HARK__UPLINK__WINDOW".to_owned(), "7".to_owned())].into_iter());
    assert_eq!(loaded.unwrap().config.uplink.window, 7);
}

#[test]
fn keyphrases_are_built_in_or_have_phonemes() {
    let text = "[voice]\nkeyphrases = [\"help\", { text = \"zu Hilfe\", phonemes = \"ts u\" }]\n";
    assert_eq!(config(text).voice.keyphrases[1].phonemes.as_deref(), Some("ts u"));
    for wrong in ["[\"aua\"]", "[\"help\", \"help\"]", "[3]", "\"help\"", "[{ text = \"x\" }]"] {
        let found = problems(&format!("[voice]\nkeyphrases = {wrong}\n"));
        assert_eq!(found.len(), 1, "{wrong}: {found:?}");
    }
}

#[test]
fn an_alarm_is_read_with_its_contacts_and_buttons() {
    let text = "[alarm]\ntest_schedule = \"wed 10:00\"\nrounds = 2\n\
                [[alarm.contact]]\nname = \"Anna\"\nexec = [\"/usr/bin/dial\", \"+41\"]\n\
                [[alarm.contact]]\nname = \"Bert\"\ntimeout = \"30s\"\nexec = [\"/bin/true\"]\n\
                [[button]]\nname = \"call\"\ngpio = { chip = \"/dev/gpiochip0\", line = 17, active = \"high\" }\n\
                [[button]]\nname = \"door\"\nevdev = { device = \"/dev/input/event0\", key = \"KEY_PHONE\" }\n\
                test_hold = \"10s\"\n\
                [[ingest.route]]\ntype = \"com.example.*\"\nlane = \"alert\"\nalarm = true\n";
    let config = config(text);
    let names: Vec<_> = config.alarm.contacts.iter().map(|c| c.name.as_str()).collect();
    assert_eq!((names, config.alarm.rounds), (vec!["Anna", "Bert"], 2));
    assert_eq!(config.alarm.contacts[0].timeout, Duration::from_secs(60));
    let schedule = TestSchedule { weekday: Some(2), minute: 600 };
    assert_eq!(config.alarm.test_schedule, Some(schedule));
    assert_eq!(schedule.to_string(), "wed 10:00");
    let gpio = ButtonContact::Gpio { chip: "/dev/gpiochip0".into(), line: 17, active_low: false };
    assert_eq!(config.buttons[0].contact, gpio);
    assert_eq!(config.buttons[0].test_hold, None);
    let evdev = ButtonContact::Evdev { device: "/dev/input/event0".into(), key: 169 };
    assert_eq!(config.buttons[1].contact, evdev);
    let route = Route {
        pattern: "com.example.".into(),
        is_prefix: true,
        lane: Some("alert".into()),
        alarm: true,
    };
    assert_eq!(config.ingest.routes, [route]);
    assert!(config.alarm.on_keyphrase && config.alarm.on_button && config.commands.enabled);
}

#[test]
fn an_alarm_that_could_not_work_is_refused_with_its_line() {
    let button = |rest: &str| format!("[[button]]\nname = \"b\"\n{rest}\n");
    let evdev = "evdev = { device = \"/dev/input/event0\", key = \"KEY_PHONE\" }";
    let table = [
        ("[alarm]\ntriggers = [\"smoke\"]\n".to_owned(), "2: alarm.triggers has `smoke`"),
        ("[alarm]\ntest_schedule = \"mon 25:00\"\n".to_owned(), "2: alarm.test_schedule is"),
        ("[alarm]\nrounds = 0\n".to_owned(), "2: alarm.rounds is 0"),
        (
            "[[alarm.contact]]\nname = \"A\"\nexec = [\"dial\"]\n".to_owned(),
            "1: alarm.contact.A.exec must begin",
        ),
        (
            "[[alarm.contact]]\nexec = [\"/dial\"]\n".to_owned(),
            "1: alarm.contact[0].name is missing",
        ),
        (
            "[[alarm.contact]]\nname = \"A\"\nexec = [\"/d\"]\n".repeat(6),
            "alarm.contact stands 6 times",
        ),
        ("[commands]\nchannel = \"maybe\"\n".to_owned(), "2: commands.channel is `maybe`"),
        ("[signal]\ntone = \"\"\n".to_owned(), "2: signal.tone is empty"),
        (button(""), "1: button.b has one of gpio"),
        (
            button(&format!("{evdev}\ngpio = {{ chip = \"/dev/gpiochip0\", line = 1 }}")),
            "1: button.b has one of gpio",
        ),
        (
            button("evdev = { device = \"/dev/input/event0\", key = \"KEY_ANY\" }"),
            "3: button.b.evdev.key is `KEY_ANY`",
        ),
        (button(&format!("{evdev}\ntest_hold = \"4s\"")), "4: button.b.test_hold is under 5s"),
        (button(&format!("{evdev}\ntest_hold = \"60s\"")), "4: button.b.test_hold is not shorter"),
        (button(evdev).repeat(2), "4: button.b.name is `b` a second time"),
        ("[[ingest.route]]\ntype = \"*x\"\n".to_owned(), "2: ingest.route[0].type is `*x`"),
        (
            "[[ingest.route]]\ntype = \"x\"\nalarm = \"yes\"\n".to_owned(),
            "3: ingest.route[0].alarm is a string",
        ),
    ];
    for (text, message) in table {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains(message), "{text}: {found:?}");
    }
}

#[test]
fn wrong_types_are_problems_and_no_panic() {
    for text in [
        "audio = 3\n",
        "[uplink]\nurl = 3\n",
        "[uplink]\nwindow = \"x\"\n",
        "[voice]\nthreshold = \"x\"\n",
        "[device]\nid = 2026-01-01\n",
        "[uplink]\nwindow = 99999999999999999999\n",
    ] {
        assert_eq!(problems(text).len(), 1, "{text}: {:?}", problems(text));
    }
}

/// A sensor with everything that can be set; the reference shows the same.
const SENSOR: &str = "[[sensor]]\nname = \"bedroom\"\ndriver = \"iio\"\npath = \"/sys/x/in_temp_input\"\n\
    unit = \"[degF]\"\noffset = -0.5\ninterval = \"30s\"\naverage = \"5m\"\ndeadband = 0.4\n\
    max_silence = \"1h\"\nstale_after = \"10m\"\nmin = -40\nmax = 185\nlane = \"alert\"\n\
    activity = \"rise\"\nactivity_step = 2\n\
    [[sensor.threshold]]\nname = \"too cold\"\nbelow = 61\nclear = 63\nhold = \"10m\"\nseverity = \"ERROR\"\n\
    [[sensor.threshold]]\nabove = 95\nlane = \"status\"\n";

#[test]
fn a_sensor_is_read_with_all_that_belongs_to_it() {
    let sensor = config(SENSOR).sensors.remove(0);
    let path = "/sys/x/in_temp_input".into();
    assert_eq!(sensor.source, Source::Iio { path, trigger: None });
    assert_eq!(
        (sensor.quantity.as_str(), sensor.scale, sensor.offset),
        ("temperature", 1e-3, -0.5)
    );
    assert_eq!((sensor.raw_unit.code(), sensor.unit.code()), ("Cel", "[degF]"));
    assert_eq!(sensor.interval, Duration::from_secs(30));
    assert_eq!((sensor.max_silence, sensor.stale_after).0, Duration::from_secs(3600));
    assert_eq!(sensor.plausible, -40.0..=185.0);
    assert_eq!(sensor.activity, Some(Sign { kind: SignKind::Rise, step: 2.0 }));
    let [cold, hot] = &sensor.thresholds[..] else { panic!("two thresholds") };
    assert_eq!((cold.side, cold.level, cold.clear), (Side::Below, 61.0, 63.0));
    assert_eq!((cold.urgency, cold.severity), (Urgency::Alert, "ERROR"));
    assert_eq!((hot.side, hot.level, hot.clear), (Side::Above, 95.0, 94.6));
    assert_eq!((hot.name.as_str(), hot.urgency), ("above 95 [degF]", Urgency::Status));
}

#[test]
fn what_a_kernel_interface_delivers_is_known_and_a_scale_of_ones_own_leads_to_the_unit() {
    let sensor = |lines: &str| {
        let text = format!("[[sensor]]\nname = \"x\"\n{lines}");
        let sensor = config(&text).sensors.remove(0);
        (sensor.quantity, sensor.raw_unit.code(), sensor.unit.code(), sensor.scale)
    };
    let of = |q: &str, raw, unit, scale| (q.to_owned(), raw, unit, scale);
    assert_eq!(
        sensor("driver = \"hwmon\"\npath = \"/h/in1_input\"\n"),
        of("voltage", "V", "V", 1e-3)
    );
    for flag in ["intrusion0_alarm", "in1_alarm", "temp*_fault"] {
        let lines = format!("driver = \"hwmon\"\npath = \"/h/{flag}\"\n");
        assert_eq!(sensor(&lines), of("alarm", "1", "1", 1.0), "{flag}");
    }
    let unknown = "[[sensor]]\nname = \"x\"\ndriver = \"hwmon\"\npath = \"/h/intrusion0_beep\"\n";
    assert!(problems(unknown).iter().any(|found| found.contains("x.unit is missing")));
    assert_eq!(
        sensor("driver = \"iio\"\npath = \"/i/in_concentration_co2_raw\"\nunit = \"[ppm]\"\n"),
        of("co2", "%", "[ppm]", 1.0)
    );
    assert_eq!(
        sensor(
            "driver = \"thermal\"\npath = \"/t\"\nunit = \"[degF]\"\nscale = 0.0018\noffset = 32\n"
        ),
        of("temperature", "[degF]", "[degF]", 0.0018)
    );
    assert_eq!(
        sensor("driver = \"power-supply\"\npath = \"/p\"\nquantity = \"charge\"\n"),
        of("charge", "%", "%", 1.0)
    );
    assert_eq!(sensor("driver = \"microphone\"\n"), of("noise", "dB", "dB", 1.0));
}

#[test]
fn all_that_is_wrong_with_sensors_is_reported_together_with_line_and_key() {
    let text = "[audio]\ninput = \"none\"\n[[sensor]]\nname = \"a b\"\ndriver = \"i2c\"\n\
        [[sensor]]\nname = \"t\"\ndriver = \"file\"\nunit = \"C\"\nquantity = \"temperature\"\ninterval = \"50ms\"\n\
        [[sensor]]\nname = \"t\"\ndriver = \"thermal\"\npath = \"/t\"\nunit = \"%\"\nactivity = \"rise\"\nextra = 1\n\
        [[sensor.threshold]]\nabove = 30\nbelow = 16\n[[sensor.threshold]]\nabove = 30\nclear = 31\n\
        [[sensor]]\nname = \"n\"\ndriver = \"microphone\"\nmin = 3\nmax = 2\n";
    let found = problems(text);
    for expected in [
        "hark.toml:4: sensor.a b.name is `a b`; 1 to 64 of the characters",
        "hark.toml:5: sensor.a b.driver is `i2c`; one of: iio, hwmon,",
        "hark.toml:6: sensor.t.path is missing: name the file",
        "hark.toml:9: sensor.t.unit is `C`, which is no UCUM code that is known here: K Cel [degF]",
        "hark.toml:11: sensor.t.interval is `50ms`; at least \"100ms\"",
        "hark.toml:13: sensor.t.name is `t` for a second time",
        "hark.toml:16: sensor.t.unit does not fit: Cel cannot be converted to %",
        "hark.toml:17: sensor.t.activity needs activity_step",
        "hark.toml:18: sensor.t.extra is unknown; [sensor.t] has: name, driver,",
        "hark.toml:19: sensor.t.threshold[0].above or `below` must be set, and not both",
        "hark.toml:24: sensor.t.threshold[1].clear is 31, which is above the level 30 itself",
        "hark.toml:27: sensor.n.driver is \"microphone\", but audio.input is \"none\"",
        "hark.toml:28: sensor.n.min is 3, which is not below max = 2",
    ] {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:#?}");
    }
    assert_eq!(
        problems("[sensor]\nname = \"t\"\n"),
        ["hark.toml:1: sensor is a table; write [[sensor]]"]
    );
}

#[test]
fn the_reference_has_every_key_of_a_sensor() {
    let reference = include_str!("../../docs/configuration.md");
    let documented = |head: &str| -> Vec<&str> {
        let rows = reference.lines().filter_map(|line| line.strip_prefix("| `"));
        let keys = rows.filter_map(|row| row.split_once('`')).map(|(key, _)| key);
        keys.filter_map(|key| key.strip_prefix(head)).collect()
    };
    let battery = "[[sensor]]\nname = \"b\"\ndriver = \"power-supply\"\npath = \"/b\"\nquantity = \"charge\"\n\
        [[sensor]]\nname = \"f\"\ndriver = \"file\"\npath = \"/f\"\nquantity = \"x\"\nunit = \"1\"\n";
    let text = format!("{SENSOR}{battery}");
    let loaded = load("f", &text, std::iter::empty()).unwrap();
    let mut sensor = std::collections::BTreeSet::new();
    let mut threshold = std::collections::BTreeSet::new();
    for setting in &loaded.settings {
        let Some((_, key)) = setting.key.split_once("sensor.").and_then(|(_, k)| k.split_once('.'))
        else {
            continue;
        };
        match key.strip_prefix("threshold") {
            Some(rest) => threshold.extend(rest.rsplit_once('.').map(|(_, key)| key)),
            None => drop(sensor.insert(key)),
        }
    }
    let sorted = |mut keys: Vec<&'static str>| {
        keys.sort_unstable();
        keys
    };
    let (of_sensor, of_threshold) =
        (documented("[[sensor]] "), documented("[[sensor.threshold]] "));
    assert_eq!(sorted(of_sensor), sensor.into_iter().collect::<Vec<_>>());
    assert_eq!(sorted(of_threshold), threshold.into_iter().collect::<Vec<_>>());
}

#[test]
fn the_reference_has_every_key_with_its_default_and_no_other() {
    let reference = include_str!("../../docs/configuration.md");
    let documented: Vec<(String, String)> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter(|row| !row.starts_with("[["))
        .filter_map(|row| row.split_once("` | `"))
        .filter_map(|(key, rest)| Some((key.to_owned(), rest.split_once("` |")?.0.to_owned())))
        .collect();
    let loaded = load("f", "", std::iter::empty()).unwrap();
    let real: Vec<_> = loaded.settings.into_iter().map(|s| (s.key, s.value)).collect();
    assert_eq!(documented, real);
}
