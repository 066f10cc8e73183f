/*
 * Stands between the firmware and the kernel on UEFI machines: checks that the kernel is whole and arms the hardware
 * watchdog, neither of which the firmware does.
 *
 * It lies at \EFI\BOOT\BOOTX64.EFI of each slot's own boot partition and starts KERNEL of the same partition, if its
 * CRC-32 is the one in KERNEL.crc. A kernel that hangs at once is reset by the watchdog, and the firmware, which has
 * spent BootNext, starts the other slot. If the kernel cannot be started, the guard tries the other partitions of the
 * same disk: firmware that has lost its boot entries knows the first partition only. If there is nothing to start it
 * returns; the watchdog runs on and makes it a slow retry.
 *
 * It writes no file, no variable and no other device, and reads no configuration: a signature covers all that it does.
 * The CRC finds rot, not forgery; forgery is what the firmware's own check in LoadImage is for (Secure Boot).
 *
 * TIMEOUT_S (seconds) and KERNEL (wide string) come from the board file: rust/crates/rustiot-image/src/guard.rs.
 */
#include <efi.h>

#if !defined TIMEOUT_S || !defined KERNEL
#error "TIMEOUT_S and KERNEL must be set"
#endif

#define WIDEN_(text) L##text
#define WIDEN(text) WIDEN_(text)
#define TEXT_(number) #number
#define TEXT(number) WIDEN(TEXT_(number))

/* Intel 6300ESB, datasheet 300641, chapter "Watchdog timer". Offsets in configuration space and in BAR 0. */
enum {
	ESB_ID = 0x25ab8086,
	ESB_CONFIG = 0x60,	/* 16 bit; 3: no interrupt after the first stage, ticks of about 1 ms, reset after the second */
	ESB_LOCK = 0x68,	/* 8 bit; bit 1 enables, bit 0 locks until reset */
	ESB_TIMER1 = 0x00,	/* 32 bit; ticks of the first stage */
	ESB_TIMER2 = 0x04,	/* 32 bit; ticks of the second stage */
	ESB_RELOAD = 0x0c,	/* 16 bit; bit 8 restarts the first stage, bit 9 says that the last reset was ours */
	ESB_TICKS = TIMEOUT_S * 1024 / 2,
};
_Static_assert(TIMEOUT_S >= 1 && TIMEOUT_S <= 2046, "the 6300ESB counts from 1 to 2046 s");

static void say(EFI_SYSTEM_TABLE *st, const CHAR16 *text)
{
	st->ConOut->OutputString(st->ConOut, (CHAR16 *)text);
}

static void report(EFI_SYSTEM_TABLE *st, const CHAR16 *what, EFI_STATUS status)
{
	CHAR16 hex[2 * sizeof status + 1];

	for (UINTN i = 0; i < 2 * sizeof status; i++)
		hex[i] = L"0123456789abcdef"[status >> (8 * sizeof status - 4 - 4 * i) & 15];
	hex[2 * sizeof status] = 0;
	say(st, L"RustIoT guard: ");
	say(st, what);
	say(st, L", status ");
	say(st, hex);
	say(st, L"\r\n");
}

/* Each write to a protected register needs the two unlocking writes before it. */
static EFI_STATUS esb_write(EFI_PCI_IO_PROTOCOL *pci, EFI_PCI_IO_PROTOCOL_WIDTH width, UINT64 reg, UINT32 value)
{
	UINT16 unlock[] = { 0x80, 0x86 };

	for (UINTN i = 0; i < 2; i++) {
		EFI_STATUS status = pci->Mem.Write(pci, EfiPciIoWidthUint16, 0, ESB_RELOAD, 1, &unlock[i]);
		if (EFI_ERROR(status))
			return status;
	}
	return pci->Mem.Write(pci, width, 0, reg, 1, &value);
}

/*
 * The lock bit keeps Linux's driver from stopping the timer when it loads: it runs on until somebody feeds it. Bit 9 of
 * the reload register is left alone, because Linux reports it as the reason for this boot.
 */
static EFI_STATUS esb_arm(EFI_PCI_IO_PROTOCOL *pci)
{
	UINT16 config = 3;
	UINT8 lock = 3;
	EFI_STATUS status;

	status = pci->Attributes(pci, EfiPciIoAttributeOperationEnable, EFI_PCI_IO_ATTRIBUTE_MEMORY, NULL);
	if (!EFI_ERROR(status))
		status = esb_write(pci, EfiPciIoWidthUint32, ESB_TIMER1, ESB_TICKS);
	if (!EFI_ERROR(status))
		status = esb_write(pci, EfiPciIoWidthUint32, ESB_TIMER2, ESB_TICKS);
	if (!EFI_ERROR(status))
		status = esb_write(pci, EfiPciIoWidthUint16, ESB_RELOAD, 1 << 8);
	if (!EFI_ERROR(status))
		status = pci->Pci.Write(pci, EfiPciIoWidthUint16, ESB_CONFIG, 1, &config);
	if (!EFI_ERROR(status))
		status = pci->Pci.Write(pci, EfiPciIoWidthUint8, ESB_LOCK, 1, &lock);
	return status;
}

static EFI_STATUS arm_watchdog(EFI_SYSTEM_TABLE *st)
{
	EFI_GUID pci_io = EFI_PCI_IO_PROTOCOL_GUID;
	EFI_HANDLE *handles;
	UINTN count;
	EFI_STATUS status = st->BootServices->LocateHandleBuffer(ByProtocol, &pci_io, NULL, &count, &handles);

	if (EFI_ERROR(status))
		return status;
	status = EFI_NOT_FOUND;
	for (UINTN i = 0; i < count && status == EFI_NOT_FOUND; i++) {
		EFI_PCI_IO_PROTOCOL *pci;
		UINT32 id;

		if (EFI_ERROR(st->BootServices->HandleProtocol(handles[i], &pci_io, (VOID **)&pci)) ||
		    EFI_ERROR(pci->Pci.Read(pci, EfiPciIoWidthUint32, 0, 1, &id)))
			continue;
		if (id == ESB_ID)
			status = esb_arm(pci);
	}
	st->BootServices->FreePool(handles);
	return status;
}

/* Reads a whole file into memory that the caller frees. */
static EFI_STATUS read_file(EFI_BOOT_SERVICES *bs, EFI_FILE_PROTOCOL *root, const CHAR16 *name, VOID **data, UINTN *size)
{
	EFI_FILE_PROTOCOL *file;
	UINT64 end;
	EFI_STATUS status = root->Open(root, &file, (CHAR16 *)name, EFI_FILE_MODE_READ, 0);

	*data = NULL;
	if (EFI_ERROR(status))
		return status;
	status = file->SetPosition(file, ~0ull);	/* the end (UEFI 2.10, 13.5) */
	if (!EFI_ERROR(status))
		status = file->GetPosition(file, &end);
	if (!EFI_ERROR(status))
		status = file->SetPosition(file, 0);
	if (!EFI_ERROR(status))
		status = bs->AllocatePool(EfiLoaderData, *size = end, data);
	if (!EFI_ERROR(status))
		status = file->Read(file, size, *data);
	if (!EFI_ERROR(status) && *size != end)
		status = EFI_END_OF_FILE;
	file->Close(file);
	return status;
}

/* Reads the kernel and checks that it is what was installed. The caller frees it. */
static EFI_STATUS read_kernel(EFI_BOOT_SERVICES *bs, EFI_HANDLE partition, VOID **kernel, UINTN *size)
{
	EFI_GUID fs_guid = EFI_SIMPLE_FILE_SYSTEM_PROTOCOL_GUID;
	EFI_SIMPLE_FILE_SYSTEM_PROTOCOL *fs;
	EFI_FILE_PROTOCOL *root;
	UINT32 *wanted = NULL, crc;
	UINTN crc_size;
	EFI_STATUS status = bs->HandleProtocol(partition, &fs_guid, (VOID **)&fs);

	if (!EFI_ERROR(status))
		status = fs->OpenVolume(fs, &root);
	if (EFI_ERROR(status))
		return status;
	status = read_file(bs, root, KERNEL L".crc", (VOID **)&wanted, &crc_size);
	if (!EFI_ERROR(status))
		status = read_file(bs, root, KERNEL, kernel, size);
	if (!EFI_ERROR(status))
		status = bs->CalculateCrc32(*kernel, *size, &crc);
	if (!EFI_ERROR(status) && (crc_size != sizeof crc || crc != *wanted))
		status = EFI_CRC_ERROR;
	if (wanted)
		bs->FreePool(wanted);
	root->Close(root);
	return status;
}

/* The path of KERNEL on the partition, which the caller frees. */
static EFI_STATUS kernel_path(EFI_BOOT_SERVICES *bs, EFI_HANDLE partition, EFI_DEVICE_PATH **path)
{
	EFI_GUID path_guid = EFI_DEVICE_PATH_PROTOCOL_GUID;
	EFI_DEVICE_PATH *device, *node;
	UINTN prefix, file = SIZE_OF_FILEPATH_DEVICE_PATH + sizeof KERNEL;
	EFI_STATUS status = bs->HandleProtocol(partition, &path_guid, (VOID **)&device);

	if (EFI_ERROR(status))
		return status;
	for (node = device; !IsDevicePathEnd(node); node = NextDevicePathNode(node))
		;
	prefix = (UINT8 *)node - (UINT8 *)device;
	status = bs->AllocatePool(EfiLoaderData, prefix + file + END_DEVICE_PATH_LENGTH, (VOID **)path);
	if (EFI_ERROR(status))
		return status;
	bs->CopyMem(*path, device, prefix);
	node = (EFI_DEVICE_PATH *)((UINT8 *)*path + prefix);
	node->Type = MEDIA_DEVICE_PATH;
	node->SubType = MEDIA_FILEPATH_DP;
	SetDevicePathNodeLength(node, file);
	bs->CopyMem(((FILEPATH_DEVICE_PATH *)node)->PathName, KERNEL, sizeof KERNEL);
	SetDevicePathEndNode(NextDevicePathNode(node));
	return EFI_SUCCESS;
}

/*
 * Starts KERNEL of a partition. The image's path begins with the partition's own, so the kernel's stub sees its device
 * handle and tells Linux the right partition (LoaderDevicePartUUID).
 */
static EFI_STATUS start_kernel(EFI_HANDLE self, EFI_BOOT_SERVICES *bs, EFI_HANDLE partition)
{
	EFI_DEVICE_PATH *path = NULL;
	EFI_HANDLE image = NULL;
	VOID *kernel = NULL;
	UINTN size;
	EFI_STATUS status = read_kernel(bs, partition, &kernel, &size);

	if (!EFI_ERROR(status))
		status = kernel_path(bs, partition, &path);
	if (!EFI_ERROR(status))
		status = bs->LoadImage(FALSE, self, path, kernel, size, &image);
	if (path)
		bs->FreePool(path);
	if (kernel)
		bs->FreePool(kernel);
	if (!EFI_ERROR(status))
		return bs->StartImage(image, NULL, NULL);
	if (image)	/* loaded, but its signature does not hold */
		bs->UnloadImage(image);
	return status;
}

/* Whether two partitions lie on one disk: their paths differ in the last node only. */
static BOOLEAN same_disk(EFI_BOOT_SERVICES *bs, EFI_HANDLE a, EFI_HANDLE b)
{
	EFI_GUID path_guid = EFI_DEVICE_PATH_PROTOCOL_GUID;
	EFI_DEVICE_PATH *x, *y;

	if (EFI_ERROR(bs->HandleProtocol(a, &path_guid, (VOID **)&x)) ||
	    EFI_ERROR(bs->HandleProtocol(b, &path_guid, (VOID **)&y)))
		return FALSE;
	for (; !IsDevicePathEnd(x) && !IsDevicePathEnd(y); x = NextDevicePathNode(x), y = NextDevicePathNode(y)) {
		UINTN length = DevicePathNodeLength(x);

		if (IsDevicePathEnd(NextDevicePathNode(x)))
			return IsDevicePathEnd(NextDevicePathNode(y));
		for (UINTN i = 0; i < length; i++)
			if (((UINT8 *)x)[i] != ((UINT8 *)y)[i])
				return FALSE;
	}
	return FALSE;
}

/* Starts KERNEL of another partition of the disk that `own` lies on. */
static EFI_STATUS start_other(EFI_HANDLE self, EFI_BOOT_SERVICES *bs, EFI_HANDLE own)
{
	EFI_GUID fs_guid = EFI_SIMPLE_FILE_SYSTEM_PROTOCOL_GUID;
	EFI_HANDLE *handles;
	UINTN count;
	EFI_STATUS status = bs->LocateHandleBuffer(ByProtocol, &fs_guid, NULL, &count, &handles);

	if (EFI_ERROR(status))
		return status;
	status = EFI_NOT_FOUND;
	for (UINTN i = 0; i < count && EFI_ERROR(status); i++)
		if (handles[i] != own && same_disk(bs, own, handles[i]))
			status = start_kernel(self, bs, handles[i]);
	bs->FreePool(handles);
	return status;
}

/* Called by gnu-efi's start code, in the compiler's own calling convention. */
EFI_STATUS _entry(EFI_HANDLE self, EFI_SYSTEM_TABLE *st);

EFI_STATUS _entry(EFI_HANDLE self, EFI_SYSTEM_TABLE *st)
{
	EFI_GUID image_guid = EFI_LOADED_IMAGE_PROTOCOL_GUID;
	EFI_LOADED_IMAGE *own;
	EFI_STATUS status = arm_watchdog(st);

	if (EFI_ERROR(status))
		report(st, L"no watchdog armed", status);
	else
		say(st, L"RustIoT guard: watchdog armed for " TEXT(TIMEOUT_S) L" s\r\n");
	status = st->BootServices->HandleProtocol(self, &image_guid, (VOID **)&own);
	if (!EFI_ERROR(status)) {
		status = start_kernel(self, st->BootServices, own->DeviceHandle);
		report(st, L"this slot cannot be started", status);
		status = start_other(self, st->BootServices, own->DeviceHandle);
	}
	report(st, L"no other slot can be started", status);
	return EFI_ERROR(status) ? status : EFI_LOAD_ERROR;
}
