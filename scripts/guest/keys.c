/* A telephone with one key (KEY_PHONE) and a light, through uinput: reads "1" (down), "0" (up), "-1" (the light changes) or
 * milliseconds to wait, separated by spaces, and is gone at the end of its input. For scripts/drivers-test. */
#include <fcntl.h>
#include <linux/uinput.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int device;

static void tell(int type, int code, int value)
{
	struct input_event event = { .type = type, .code = code, .value = value };

	if (write(device, &event, sizeof event) != sizeof event)
		perror("write /dev/uinput");
}

int main(void)
{
	struct uinput_setup setup = { .id = { .bustype = BUS_VIRTUAL }, .name = "hark-test" };
	int number, light = 0;

	device = open("/dev/uinput", O_WRONLY);
	if (device < 0 || ioctl(device, UI_SET_EVBIT, EV_KEY) || ioctl(device, UI_SET_KEYBIT, KEY_PHONE)
	    || ioctl(device, UI_SET_EVBIT, EV_LED) || ioctl(device, UI_SET_LEDBIT, LED_MUTE)
	    || ioctl(device, UI_DEV_SETUP, &setup) || ioctl(device, UI_DEV_CREATE)) {
		perror("/dev/uinput");
		return 1;
	}
	while (scanf("%d", &number) == 1) {
		if (number > 1) {
			usleep(number * 1000);
			continue;
		}
		if (number < 0) {
			/* Without a report, as the kernel's LED driver. */
			tell(EV_LED, LED_MUTE, light = !light);
			continue;
		}
		tell(EV_KEY, KEY_PHONE, number);
		tell(EV_SYN, SYN_REPORT, 0);
	}
	return 0;
}
